#include "base/thread.h"

#include <pthread.h>

#include <utility>

namespace baton {

Thread::Thread(const std::string& name, std::function<void()> function)
    : thread_([name = name.substr(0, 15), function = std::move(function)] {
        pthread_setname_np(pthread_self(), name.c_str());
        function();
      }) {}

void Thread::Join() {
  if (thread_.joinable()) thread_.join();
}

}  // namespace baton
