#ifndef BATON_PREFILL_WORKER_GROUP_LEADER_H_
#define BATON_PREFILL_WORKER_GROUP_LEADER_H_

// The leader's side of a prefill group (rank 0): passes on what the planner decided and gathers how
// the ranks' shares of each hand-off ended. A hand-off has succeeded when every rank's share has;
// the first failure ends it on all ranks. Owned and called by the prefill loop's thread, which does
// its own share through its HandoffSender as it does alone.

#include <cstdint>
#include <map>
#include <vector>

#include "absl/status/status.h"
#include "prefill_worker/group_link.h"
#include "prefill_worker/group_messages.h"
#include "prefill_worker/handoff_sender.h"

namespace baton::prefill_worker {

class GroupLeader {
 public:
  // Both outlive the leader.
  GroupLeader(GroupLink& link, HandoffSender& sender) : link_(link), sender_(sender) {}

  // To be told to the followers with the next exchange, in order.
  void Open(const scheduler::OpenHandoff& open);
  void Abort(RequestKey key);

  // Tells the followers what has gathered, and to run `pass` if there is one: the leader runs it
  // right behind. Collects their reports. An error breaks the group.
  absl::Status Announce(const scheduler::RunPrefillPass* pass);
  // Tells them that the group is over.
  absl::Status Stop();

  // Something to tell, or a follower has.
  bool wants_exchange() const { return !command_.handoffs.empty() || link_.PeersWait(); }

  // Adds `own` (of this rank's sender) to the followers' reports; returns the hand-offs that are
  // over on all ranks, or failed on one.
  std::vector<scheduler::HandoffFinished> Merge(const std::vector<scheduler::HandoffFinished>& own);

 private:
  struct Shares {
    int missing = 0;  // ranks that have not finished theirs
    uint32_t messages = 0;
    uint64_t bytes = 0;
  };
  void Count(const scheduler::HandoffFinished& share, int rank);

  GroupLink& link_;
  HandoffSender& sender_;
  GroupCommand command_;
  std::map<RequestKey, Shares> open_;
  std::vector<scheduler::HandoffFinished> over_;
};

}  // namespace baton::prefill_worker

#endif  // BATON_PREFILL_WORKER_GROUP_LEADER_H_
