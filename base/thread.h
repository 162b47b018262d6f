#ifndef BATON_BASE_THREAD_H_
#define BATON_BASE_THREAD_H_

// A thread with a name that joins when it goes out of scope. Its owner tells the function to return
// (a queue's Close, a flag) before destroying it: destruction waits without a bound. The function
// must not throw.

#include <functional>
#include <string>
#include <thread>

namespace baton {

class Thread {
 public:
  Thread() = default;  // no thread
  // The kernel shows the first 15 characters of `name` in tools such as top.
  Thread(const std::string& name, std::function<void()> function);
  Thread(Thread&&) = default;
  Thread& operator=(Thread&&) = delete;
  ~Thread() { Join(); }

  // Waits until the function has returned. Again, or without a thread: no effect.
  void Join();
  bool joinable() const { return thread_.joinable(); }

 private:
  std::thread thread_;
};

}  // namespace baton

#endif  // BATON_BASE_THREAD_H_
