#ifndef BATON_PREFILL_WORKER_GROUP_LINK_H_
#define BATON_PREFILL_WORKER_GROUP_LINK_H_

// One exchange between the leader of a prefill group and its followers: the leader's command goes
// to all, every follower's report to the leader. All ranks call it together; whoever has something
// to say begins and rings for the others.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "base/clock.h"
#include "transport/collectives.h"

namespace baton::prefill_worker {

class GroupLink {
 public:
  static constexpr int kLeader = 0;

  GroupLink(transport::Collectives& collectives, Duration timeout)
      : collectives_(collectives), timeout_(timeout) {}

  bool PeersWait() const { return collectives_.PeerWaits(); }
  absl::Status health() const { return collectives_.health(); }
  int rank() const { return collectives_.rank(); }
  int ranks() const { return collectives_.world_size(); }
  void Abort(const absl::Status& why) { collectives_.Abort(why); }

  // `mine` is the command on the leader, a report elsewhere. Afterwards command() holds the
  // leader's and, on the leader, report(r) that of rank r. Errors are the collectives': the group
  // is broken.
  absl::Status Exchange(std::span<const std::byte> mine);

  std::span<const std::byte> command() const { return command_; }
  std::span<const std::byte> report(int rank) const;

 private:
  transport::Collectives& collectives_;
  const Duration timeout_;
  std::vector<uint64_t> sizes_;  // [ranks]
  std::vector<std::byte> command_;
  std::vector<std::byte> reports_;  // of all followers, rank after rank
};

}  // namespace baton::prefill_worker

#endif  // BATON_PREFILL_WORKER_GROUP_LINK_H_
