#ifndef BATON_WIRE_OWN_IDENTITY_H_
#define BATON_WIRE_OWN_IDENTITY_H_

// What a worker says of itself. Its name holds the port, which is known only once its server
// listens and peers may already call. Thread-safe.

#include <mutex>
#include <string>
#include <utility>

#include "scheduler/messages.h"

namespace baton::wire {

class OwnIdentity {
 public:
  // Without an instance the worker has no name yet: peers are told to come again.
  explicit OwnIdentity(scheduler::WorkerIdentity identity) : identity_(std::move(identity)) {}

  void SetInstance(const std::string& instance) {
    std::lock_guard<std::mutex> lock(mutex_);
    identity_.instance = instance;
  }

  scheduler::WorkerIdentity Get() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return identity_;
  }

 private:
  mutable std::mutex mutex_;
  scheduler::WorkerIdentity identity_;  // guarded by mutex_
};

}  // namespace baton::wire

#endif  // BATON_WIRE_OWN_IDENTITY_H_
