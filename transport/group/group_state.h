#ifndef BATON_TRANSPORT_GROUP_GROUP_STATE_H_
#define BATON_TRANSPORT_GROUP_GROUP_STATE_H_

// What one rank knows of its group besides the data: whether it is broken, since which call and by
// whom, and who waits for whom. Thread-safe: the rank's loop, other ranks' threads (inproc) and the
// control thread (processes) share it.
//
// Calls are counted from 1 in the order in which a group makes them (an AllReduceSum of much data
// counts several times). They number the messages, and let a rank that has left after call n be no
// hindrance to those who are still inside a call up to n.

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/clock.h"

namespace baton::transport {

struct GroupFailure {
  absl::Status status;
  std::vector<int> lost_ranks;  // ascending
};

class GroupState {
 public:
  // `names[r]` is what people call rank r.
  GroupState(int rank, std::vector<std::string> names);

  int rank() const { return rank_; }
  const std::vector<std::string>& names() const { return names_; }
  std::string Name(int rank) const;
  std::string Names(const std::vector<int>& ranks) const;

  // Calls after `last_good_call` fail with `failure`. Of several failures the one that spoils the
  // earlier call counts, among equals the first. True when this one counts.
  bool Break(GroupFailure failure, uint64_t last_good_call = 0);
  bool BrokenFor(uint64_t call) const { return call > last_good_call_.load(); }
  bool broken() const { return last_good_call_.load() != UINT64_MAX; }
  GroupFailure failure() const;

  // A rank will not go on from this group; this one: others have told it that it is lost.
  void Gone(int rank);
  std::vector<int> gone() const;  // ascending

  void SetWakeup(std::function<void()> wakeup);
  void Wake() const;

  // This rank's calls so far. Only its loop thread enters.
  uint64_t entered() const { return entered_.load(); }
  uint64_t Enter() { return entered_.fetch_add(1) + 1; }

  // A peer is in, or about to enter, `call`.
  void PeerAnnounced(uint64_t call);
  bool PeerWaits() const { return announced_.load() > entered_.load(); }

  // A peer has said, at `now`, that it waits in `call` for `ranks`.
  void PeerReported(int rank, uint64_t call, std::vector<int> ranks, Tick now);
  // Whose fault it is that `missing` have not come to `call`: ranks of which it is known that they
  // wait themselves, in an earlier call, are replaced by those they wait for. Reports from before
  // `since` do not count.
  std::vector<int> Suspects(const std::vector<int>& missing, uint64_t call, Tick since) const;

 private:
  struct Report {
    uint64_t call = 0;
    std::vector<int> ranks;
    Tick at;
  };

  const int rank_;
  const std::vector<std::string> names_;
  std::atomic<uint64_t> last_good_call_{UINT64_MAX};
  std::atomic<uint64_t> entered_{0};
  std::atomic<uint64_t> announced_{0};
  mutable std::mutex mutex_;
  GroupFailure failure_;          // guarded by mutex_
  std::set<int> gone_;            // guarded by mutex_
  std::vector<Report> reports_;   // guarded by mutex_
  std::function<void()> wakeup_;  // guarded by mutex_
};

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_GROUP_GROUP_STATE_H_
