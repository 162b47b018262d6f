#ifndef BATON_BASE_LOOP_THREAD_H_
#define BATON_BASE_LOOP_THREAD_H_

// A tick loop on its own thread: what router, prefill worker and decode worker do around theirs.
// The thread ticks while there is work and otherwise waits on the loop's inbox; everybody else sees
// the loop through the report of its last step.
//
// `Loop` has  Result Tick()          with members `bool busy` and `Tick wake_at`; never waits
//             bool drained() const   loop's thread only
//
// Threads: Start and Stop by the owner, OnStep by the loop's thread, the rest by any.

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "base/bounded_queue.h"
#include "base/clock.h"
#include "base/thread.h"

namespace baton {

template <typename Loop, typename Event, typename Report>
class LoopThread {
 public:
  // The references must outlive the object. `max_wait` > 0: the idle loop ticks at least this
  // often.
  LoopThread(BoundedQueue<Event>& inbox, Clock& clock, Duration max_wait = Duration())
      : inbox_(inbox), clock_(clock), max_wait_(max_wait > Duration() ? max_wait : kMaxWait) {}
  ~LoopThread() { Stop(); }

  void Start(const std::string& name, std::unique_ptr<Loop> loop) {
    loop_ = std::move(loop);
    thread_.emplace(name, [this] { RunUntilStopped(); });
  }

  // Ends the loop after the step that it is in, and destroys it. Again: no effect.
  void Stop() {
    stop_.store(true, std::memory_order_release);
    inbox_.Wake();
    thread_.reset();
    loop_.reset();
  }

  // To be called at the end of every step.
  void OnStep(const Report& report) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      report_ = report;
    }
    if (loop_->drained()) drained_.store(true, std::memory_order_release);
  }

  // From the first step after which the loop says so.
  bool drained() const { return drained_.load(std::memory_order_acquire); }

  Report last_report() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return report_;
  }

 private:
  // Waits end early on any event; this bounds them when a wake-up time is far away or infinite.
  static constexpr Duration kMaxWait = Duration::Millis(500);

  void RunUntilStopped() {
    while (!stop_.load(std::memory_order_acquire)) {
      const auto result = loop_->Tick();
      // Draining the inbox forgets a wake-up: look again before the wait.
      if (result.busy || stop_.load(std::memory_order_acquire)) continue;
      const Duration wait = result.wake_at.infinite() ? max_wait_ : result.wake_at - clock_.Now();
      if (wait > Duration()) inbox_.WaitFor(std::min(wait, max_wait_));
    }
  }

  BoundedQueue<Event>& inbox_;
  Clock& clock_;
  const Duration max_wait_;
  std::unique_ptr<Loop> loop_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> drained_{false};
  mutable std::mutex mutex_;
  Report report_{};  // guarded by mutex_
  std::optional<Thread> thread_;
};

}  // namespace baton

#endif  // BATON_BASE_LOOP_THREAD_H_
