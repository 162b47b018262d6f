#ifndef BATON_TESTS_TRANSPORT_CHILD_PROCESS_H_
#define BATON_TESTS_TRANSPORT_CHILD_PROCESS_H_

// A child process with pipes to its standard input and output; killed when it goes out of scope.

#include <csignal>
#include <string>
#include <vector>

namespace baton::transport {

class ChildProcess {
 public:
  // Dies when it cannot be started.
  ChildProcess(const std::string& program, const std::vector<std::string>& arguments);
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  // The next line of its output, without the newline; empty at the end. One that does not come
  // within two minutes is "(no line)": a child that lives on without a word fails a test, and stops
  // none.
  std::string ReadLine();
  void Signal(int signal);
  // SIGKILL, and waits for its end.
  void Kill();
  // Closes its standard input and waits; its exit code, or -signal.
  int Finish();

 private:
  int Wait();

  int pid_ = -1;
  int input_ = -1;
  int output_ = -1;
};

}  // namespace baton::transport

#endif  // BATON_TESTS_TRANSPORT_CHILD_PROCESS_H_
