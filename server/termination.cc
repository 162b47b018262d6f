#include "server/termination.h"

#include <pthread.h>
#include <signal.h>
#include <time.h>

#include <algorithm>

namespace baton::server {
namespace {

sigset_t TerminationSet() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  return set;
}

// A drain ends this long after the last request at most.
constexpr Duration kDrainPoll = Duration::Millis(10);
// Until then a role that cannot work takes requests on, which others then have to start over.
constexpr Duration kHealthPoll = Duration::Millis(20);

}  // namespace

TerminationSignals::TerminationSignals() {
  const sigset_t set = TerminationSet();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

TerminationSignals::~TerminationSignals() {
  const sigset_t set = TerminationSet();
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

TerminationSignals::Uncaught::Uncaught() {
  const sigset_t set = TerminationSet();
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

TerminationSignals::Uncaught::~Uncaught() {
  const sigset_t set = TerminationSet();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

bool TerminationSignals::WaitFor(Duration timeout) {
  const sigset_t set = TerminationSet();
  const int64_t nanos = std::max<int64_t>(timeout.nanos(), 0);
  timespec wait;
  wait.tv_sec = static_cast<time_t>(nanos / 1'000'000'000);
  wait.tv_nsec = static_cast<long>(nanos % 1'000'000'000);
  return sigtimedwait(&set, nullptr, &wait) > 0;
}

DrainResult RunUntilTerminated(TerminationSignals& signals, const DrainSteps& steps,
                               Duration timeout, Clock& clock, const Log& log) {
  const auto failed = [&steps, &log] {
    if (!steps.health) return false;
    const absl::Status health = steps.health();
    if (!health.ok()) log.Error("ending at once", {{"status", health.ToString()}});
    return !health.ok();
  };
  while (!signals.WaitFor(steps.health ? kHealthPoll : Duration::Seconds(3600))) {
    if (failed()) return DrainResult::kFailed;
    if (steps.over && steps.over()) return DrainResult::kDrained;
  }
  log.Info("draining: no new work, running requests finish",
           {{"timeout_ms", timeout.millis()}, {"again", "a second signal ends at once"}});
  const Tick until = clock.Now() + timeout;
  steps.begin();
  while (!steps.drained()) {
    if (failed()) return DrainResult::kFailed;
    if (clock.Now() >= until) {
      log.Warning("drain timed out: cancelling what still runs");
      return DrainResult::kTimedOut;
    }
    if (signals.WaitFor(kDrainPoll)) {
      log.Warning("second signal: ending at once");
      return DrainResult::kSecondSignal;
    }
  }
  log.Info("drained");
  return DrainResult::kDrained;
}

}  // namespace baton::server
