#ifndef BATON_TRANSPORT_GROUP_GROUP_H_
#define BATON_TRANSPORT_GROUP_GROUP_H_

// How ranks become a group. Each rank calls Join with what it takes the group to be; the ranks may
// come in any order. When all have come and agree, each gets its Collectives, under a generation
// that is new to all of them. A rank that disagrees is refused with a message that says what
// differs; the others go on waiting for the right one until their deadline, whose message says who
// is missing.
//
// After a group has broken its ranks Join again, or Regroup, with the same Rendezvous object. What
// ranks of the old generation still send does not reach the new one.
//
// The host, the lowest rank that is not absent, decides: the others are compared with it. A rank
// that the host forms a group without, and that fits otherwise, is not refused: it waits for the
// next group (see Knocking).
//
// Regroup is for ranks that may not know the same about who is left. The host is the lowest rank of
// the old group that nobody who has come takes for lost, and the group is formed of those who come:
//
//   host     waits for every rank that nobody who has come takes for lost, at most `patience`; then
//            forms the group of who is there, be it alone
//   others   go to the host; where it cannot be reached, or keeps silent for more than twice
//            `patience`, they take it for lost as well and go to the next one
//   guests   have just started and wait in Join, which ends with the new group
//
// What ranks know to be lost only grows, and with it the host's number, so all this ends. Where the
// ways between ranks are cut it can end with several groups: which of them may go on is for its
// ranks to find out (scheduler/group_quorum.h).

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "transport/collectives.h"

namespace baton::transport {

inline constexpr int kMaxGroupRanks = 1024;

// What the ranks of one group have to agree on, and which one this is.
struct GroupOptions {
  std::string group_id;  // e.g. "decode-0"
  int world_size = 1;    // 1 to kMaxGroupRanks
  int rank = 0;          // in [0, world_size)
  // Ranks to form the group without (see collectives.h), ascending; not this one.
  std::vector<int> absent_ranks;
  std::string revision;    // of the software
  std::string model_hash;  // opaque; whatever else must be the same may be added to it
  std::string name;        // for people, e.g. "10.0.0.5:7001"; empty: the address if there is one
  Duration timeout = Duration::Seconds(30);  // of Join
  // AllReduceSum works through larger data in parts of this many bytes, and holds as much again.
  // The same on all ranks; a multiple of 4.
  uint64_t reduce_part_bytes = uint64_t{4} << 20;
};

struct RegroupOptions {
  std::vector<int> guests;                   // ascending, none of them in the group before
  Duration patience = Duration::Seconds(1);  // with ranks that nobody takes for lost
};

class Rendezvous {
 public:
  virtual ~Rendezvous() = default;

  // Blocks until the group stands or `timeout` has passed. A rank without absent_ranks may find
  // itself in a group without some ranks, where others regroup and take it in as a guest.
  // INVALID_ARGUMENT: options out of range;
  // FAILED_PRECONDITION: refused, for a disagreement; DEADLINE_EXCEEDED: some ranks did not come.
  virtual absl::StatusOr<std::unique_ptr<Collectives>> Join(const GroupOptions& options) = 0;

  // Forms `before`, the group that this rank has been in, anew: broken or not, it is not called any
  // more, but what it still learns about lost ranks counts; it outlives the call. `options` are as
  // for Join; absent_ranks is not used: the new group's is_present says who is in it. Blocks until
  // then, and at most `options.timeout`. Errors are Join's.
  virtual absl::StatusOr<std::unique_ptr<Collectives>> Regroup(const GroupOptions& options,
                                                               const RegroupOptions& regroup,
                                                               const Collectives& before) = 0;

  // Ranks that wait in Join for a group that this rank has not joined yet, ascending: on the host,
  // a rank that wants to be taken back into a running group. Never blocks. Not during Join or
  // Regroup.
  virtual std::vector<int> Knocking() = 0;
};

// INVALID_ARGUMENT with what is wrong.
absl::Status CheckGroupOptions(const GroupOptions& options);

// OK, or FAILED_PRECONDITION with everything in which `theirs` differs from `ours` (the host's). A
// rank that is absent in `ours` may think otherwise.
absl::Status CheckSameGroup(const GroupOptions& ours, const GroupOptions& theirs);

bool IsAbsent(const GroupOptions& options, int rank);
int HostRank(const GroupOptions& options);

// "rank 3 (10.0.0.5:7001)", or "rank 3" without a name.
std::string RankName(int rank, const std::string& name);
// "rank 3 (a) and rank 5 (b)".
std::string RankNames(std::span<const int> ranks, std::span<const std::string> names);

// DEADLINE_EXCEEDED of a Join. `refused`: why others were turned away, or empty.
absl::Status MissingRanksError(const GroupOptions& options, std::span<const int> missing,
                               std::span<const std::string> names, const std::string& refused);

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_GROUP_GROUP_H_
