#ifndef BATON_TESTS_SIM_EVENT_QUEUE_H_
#define BATON_TESTS_SIM_EVENT_QUEUE_H_

// Simulated time: closures in order of their instant, then of their scheduling. One thread.

#include <cstdint>
#include <functional>
#include <map>
#include <utility>

#include "base/check.h"
#include "base/clock.h"

namespace baton::sim {

class EventQueue {
 public:
  Tick now() const { return now_; }
  bool empty() const { return events_.empty(); }

  void At(Tick when, std::function<void()> what) {
    BATON_CHECK(when >= now_ && !when.infinite());
    events_.emplace(std::pair(when, next_++), std::move(what));
  }
  void After(Duration delay, std::function<void()> what) { At(now_ + delay, std::move(what)); }

  // Runs the next event; false when there is none.
  bool RunOne() {
    if (events_.empty()) return false;
    auto node = events_.extract(events_.begin());
    now_ = node.key().first;
    node.mapped()();
    return true;
  }

 private:
  Tick now_;
  uint64_t next_ = 0;
  std::map<std::pair<Tick, uint64_t>, std::function<void()>> events_;
};

}  // namespace baton::sim

#endif  // BATON_TESTS_SIM_EVENT_QUEUE_H_
