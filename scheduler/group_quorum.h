#ifndef BATON_SCHEDULER_GROUP_QUORUM_H_
#define BATON_SCHEDULER_GROUP_QUORUM_H_

// Whether the ranks that have found each other after their group broke may go on as the group, or
// whether others may have done so. Pure; every rank is given the same and finds the same.
//
// A group is a *view*: a generation and its members. A rank remembers the last view that it knows
// to be *established* (all its members knew of it before one of them began to work), and each later
// view that it has entered and that broke before it knew: others may have gone on with it. Ranks
// may go on when they hold enough of the newest established view, and of every later one that any
// of them has entered: more than half; or just half, with the view's first rank or knowing that
// all of the others have ended.
//
// Why two groups can never both go on. Say V is the newest view that anybody works with, and S goes
// on after it. Whoever works with V knew that all its members had entered it; so each of them
// remembers V, as established or as entered, until it works with a later one. Any ranks that are to
// go on after V, or beside it, and that include a member of V, are therefore held against V: they
// need half of it at least. Two sets without a rank in common can only both have just half; only
// one of them has V's first rank, and the other would have to know that those have ended. Ranks of
// whom none is a member of V go on from some view W before it. V's ranks held at least half of W
// (or of what lies between), so that the rest again are half of it at most, without its first rank.
// Where a set goes on because the rest has ended, all of it have seen that, each for itself and in
// a view that they shared: so the rest had not gone on to a view of its own before.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"

namespace baton::scheduler {

struct GroupView {
  uint64_t generation = 0;    // grows from view to view; 0: none
  int32_t first = 0;          // decides between halves: a member
  std::vector<bool> members;  // [ranks]
  friend bool operator==(const GroupView&, const GroupView&) = default;
};

// What one rank remembers.
struct ViewHistory {
  GroupView established;
  std::vector<GroupView> entered;  // since, by generation
  // [ranks] that it has seen end, since `established`, in a view that both were in: while neither
  // had entered a later one.
  std::vector<bool> ended;

  // Before this rank tells anybody of the view that it is in it.
  void Enter(const GroupView& view);
  // All have entered it, and may go on.
  void Establish(const GroupView& view);
};

struct QuorumDecision {
  bool may_go_on = false;
  // Of those who ask: members of an older view that the newest established one does without. What
  // they hold is out of date: they have to leave, and the others to find each other again.
  std::vector<int32_t> outdated;
  std::string why_not;  // for people
};

// histories: [ranks], those of the ranks that have found each other; null for the others, and for
// ranks that have just started, which have no say.
QuorumDecision DecideQuorum(absl::Span<const ViewHistory* const> histories);

}  // namespace baton::scheduler

#endif  // BATON_SCHEDULER_GROUP_QUORUM_H_
