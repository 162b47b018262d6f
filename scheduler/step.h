#ifndef BATON_SCHEDULER_STEP_H_
#define BATON_SCHEDULER_STEP_H_

// What the router, the two planners and their shells share: the sink that Step writes to, the
// events that all of them know, and what a shell's tick returns. Plain values.

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/clock.h"
#include "scheduler/types.h"

namespace baton::scheduler {

// Receives what one Step decided, in the order in which the shell must carry it out, and the step's
// report. The shell clears it between steps; Step only appends.
template <typename Action, typename Report>
struct ActionSink {
  std::vector<Action> actions;
  Report report;

  template <typename A>
  void Add(A&& action) {
    actions.emplace_back(std::forward<A>(action));
  }
  void Clear() {
    actions.clear();
    report = Report();
  }
};

// The pass of the last RunPass action is over.
struct PassFinished {
  // Not OK: nobody knows which slice is to blame; no output, the pages written by the pass are
  // undefined.
  absl::Status status;
  StepOutput output;
  Tick finished_at;
};

// No new work from now on; what runs may finish.
struct DrainRequested {};

// What a shell's Tick tells the thread that drives it.
struct TickResult {
  bool busy = false;  // something was done: call again at once
  Tick wake_at =
      Tick::Infinite();  // when not busy: call again by then, or when the inbox has items
};

}  // namespace baton::scheduler

#endif  // BATON_SCHEDULER_STEP_H_
