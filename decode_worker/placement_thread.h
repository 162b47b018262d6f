#ifndef BATON_DECODE_WORKER_PLACEMENT_THREAD_H_
#define BATON_DECODE_WORKER_PLACEMENT_THREAD_H_

// Computes placements of experts beside the loop: too long a work for the gap between two passes.
// Thread-safe.

#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <vector>

#include "base/thread.h"
#include "scheduler/rebalance_planner.h"

namespace baton::decode_worker {

class PlacementThread {
 public:
  // `wakeup` is called, from any thread, when a placement was computed.
  explicit PlacementThread(std::function<void()> wakeup);
  // Waits for the placement that is being computed.
  ~PlacementThread();

  // One at a time: an older one that was not begun is forgotten.
  void Begin(scheduler::ComputePlacement work);
  // What was computed since the last call.
  std::vector<scheduler::PlacementComputed> TakeComputed();

 private:
  void RunUntilStopped();

  const std::function<void()> wakeup_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stop_ = false;  // guarded by mutex_, like the rest
  std::optional<scheduler::ComputePlacement> work_;
  std::vector<scheduler::PlacementComputed> computed_;
  Thread thread_;  // last: it uses the rest
};

}  // namespace baton::decode_worker

#endif  // BATON_DECODE_WORKER_PLACEMENT_THREAD_H_
