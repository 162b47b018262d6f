#ifndef BATON_TESTS_SCHEDULER_HARNESS_H_
#define BATON_TESTS_SCHEDULER_HARNESS_H_

// Drives one pure decider by hand: time moves when told, each step's actions can be picked by type,
// and invariants are checked after every step.

#include <initializer_list>
#include <utility>
#include <variant>
#include <vector>

#include "base/clock.h"
#include "scheduler/step.h"

namespace baton::scheduler {

template <typename Decider, typename Event, typename Sink>
class Harness {
 public:
  template <typename Options>
  explicit Harness(const Options& options) : decider(options) {}

  // One step at the present time.
  void Step(std::vector<Event> events = {}) {
    sink.Clear();
    decider.Step(now, events, sink);
    decider.CheckInvariants();
  }
  void StepAfter(Duration d, std::vector<Event> events = {}) {
    now = now + d;
    Step(std::move(events));
  }

  // The last step's actions of one type, in order.
  template <typename Action>
  std::vector<Action> All() const {
    std::vector<Action> found;
    for (const auto& action : sink.actions) {
      if (const Action* a = std::get_if<Action>(&action)) found.push_back(*a);
    }
    return found;
  }

  Tick now = Tick::FromNanos(1'000'000'000);
  Decider decider;
  Sink sink;
};

}  // namespace baton::scheduler

#endif  // BATON_TESTS_SCHEDULER_HARNESS_H_
