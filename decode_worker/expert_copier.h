#ifndef BATON_DECODE_WORKER_EXPERT_COPIER_H_
#define BATON_DECODE_WORKER_EXPERT_COPIER_H_

// Makes the copies of experts that a rank needs for a placement to come, one after the other, on a
// thread of its own and under a bandwidth limit, so that passes go on meanwhile. Thread-safe.

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <vector>

#include "absl/status/status.h"
#include "base/clock.h"
#include "base/thread.h"
#include "model/expert_host.h"
#include "scheduler/expert_switch.h"

namespace baton::decode_worker {

class ExpertCopier {
 public:
  struct Finished {
    uint64_t version = 0;  // of the placement that the copy was for
    int32_t layer = 0;
    int32_t slot = 0;
    absl::Status status;  // not OK: the copies after it were not tried
  };

  // `bytes_per_second`: 0 is without a limit. `wakeup` is called, from any thread, when the last of
  // the copies is made, or one has failed. The references outlive the object.
  ExpertCopier(model::ExpertHost& host, Clock& clock, int64_t bytes_per_second,
               std::function<void()> wakeup);
  // Waits for the piece of a copy that is under way.
  ~ExpertCopier();

  // Begins with these, and forgets all others.
  void Begin(uint64_t version, const std::vector<scheduler::ExpertCopy>& copies);
  // Forgets all; never waits.
  void Drop() { Begin(0, {}); }

  // What has ended since the last call, of the version that was begun last.
  std::vector<Finished> TakeFinished();

 private:
  void RunUntilStopped();
  bool MayGoOn(uint64_t version, int64_t bytes);

  model::ExpertHost& host_;
  Clock& clock_;
  const int64_t bytes_per_second_;
  const std::function<void()> wakeup_;
  Tick next_piece_;  // when the limit allows one; of the copier's thread

  std::mutex mutex_;
  std::condition_variable changed_;
  bool stop_ = false;                        // guarded by mutex_, like the rest
  uint64_t version_ = 0;                     // begun last
  std::deque<scheduler::ExpertCopy> queue_;  // still to be made
  std::vector<Finished> finished_;
  Thread thread_;  // last: it uses the rest
};

}  // namespace baton::decode_worker

#endif  // BATON_DECODE_WORKER_EXPERT_COPIER_H_
