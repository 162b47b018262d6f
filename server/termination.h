#ifndef BATON_SERVER_TERMINATION_H_
#define BATON_SERVER_TERMINATION_H_

// SIGTERM and SIGINT as values, and the order in which a role ends: no new work, running requests
// finish, then exit.

#include <functional>

#include "absl/status/status.h"
#include "base/clock.h"
#include "base/log.h"

namespace baton::server {

// Made first thing in a command, before any thread starts: the threads then leave both signals to
// this object.
class TerminationSignals {
 public:
  TerminationSignals();
  ~TerminationSignals();  // as they were
  TerminationSignals(const TerminationSignals&) = delete;
  TerminationSignals& operator=(const TerminationSignals&) = delete;

  // While it lives, the signals do in this thread what they do by default: they end the process.
  class Uncaught {
   public:
    Uncaught();
    ~Uncaught();
  };

  // Waits for a signal; false when none came within `timeout`.
  bool WaitFor(Duration timeout);
};

struct DrainSteps {
  std::function<void()> begin;    // refuse new work
  std::function<bool()> drained;  // polled: is nothing running any more?
  // Polled, if there is one: true when the role is over without a signal.
  std::function<bool()> over = nullptr;
  // Polled, if there is one: an error ends the role at once, it cannot work any more.
  std::function<absl::Status()> health = nullptr;
};

enum class DrainResult { kDrained, kTimedOut, kSecondSignal, kFailed };

// Waits for the first signal, then drains for `timeout` at most, until a second signal, or until
// the role fails.
DrainResult RunUntilTerminated(TerminationSignals& signals, const DrainSteps& steps,
                               Duration timeout, Clock& clock, const Log& log);

}  // namespace baton::server

#endif  // BATON_SERVER_TERMINATION_H_
