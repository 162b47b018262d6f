#include "scheduler/group_quorum.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/check.h"

namespace baton::scheduler {
namespace {

using Histories = absl::Span<const ViewHistory* const>;

// All who ask have seen it end.
bool HasEnded(Histories histories, size_t rank) {
  return std::all_of(histories.begin(), histories.end(), [rank](const ViewHistory* history) {
    return history == nullptr || history->ended[rank];
  });
}

bool HoldsEnough(Histories histories, const GroupView& view) {
  int32_t members = 0;
  int32_t here = 0;
  bool rest_has_ended = true;
  for (size_t r = 0; r < histories.size(); ++r) {
    if (!view.members[r]) continue;
    ++members;
    if (histories[r] != nullptr) {
      ++here;
    } else {
      rest_has_ended = rest_has_ended && HasEnded(histories, r);
    }
  }
  if (2 * here != members) return 2 * here > members;
  return histories[static_cast<size_t>(view.first)] != nullptr || rest_has_ended;
}

std::string Describe(Histories histories, const GroupView& view) {
  std::vector<size_t> missing;
  int32_t members = 0;
  for (size_t r = 0; r < histories.size(); ++r) {
    members += view.members[r];
    if (view.members[r] && histories[r] == nullptr) missing.push_back(r);
  }
  return absl::StrCat("of the ", members, " ranks of generation ", view.generation, " rank(s) ",
                      absl::StrJoin(missing, ", "),
                      " are missing: they may go on as the group themselves");
}

}  // namespace

void ViewHistory::Enter(const GroupView& view) {
  entered.push_back(view);
  // Who ended and is a member again lives.
  for (size_t r = 0; r < ended.size(); ++r) ended[r] = ended[r] && !view.members[r];
}

void ViewHistory::Establish(const GroupView& view) {
  established = view;
  entered.clear();
  ended.assign(view.members.size(), false);
}

QuorumDecision DecideQuorum(Histories histories) {
  const GroupView* newest = nullptr;
  for (const ViewHistory* history : histories) {
    if (history == nullptr) continue;
    BATON_CHECK_EQ(history->established.members.size(), histories.size());
    BATON_CHECK_EQ(history->ended.size(), histories.size());
    if (newest == nullptr || history->established.generation > newest->generation) {
      newest = &history->established;
    }
  }
  BATON_CHECK_MSG(newest != nullptr, "nobody asks");
  QuorumDecision decision;
  for (size_t r = 0; r < histories.size(); ++r) {
    if (histories[r] != nullptr && !newest->members[r]) {
      decision.outdated.push_back(static_cast<int32_t>(r));
    }
  }
  const GroupView* lacking = HoldsEnough(histories, *newest) ? nullptr : newest;
  for (const ViewHistory* history : histories) {
    if (history == nullptr) continue;
    for (const GroupView& view : history->entered) {
      if (view.generation <= newest->generation || HoldsEnough(histories, view)) continue;
      if (lacking == nullptr || view.generation > lacking->generation) lacking = &view;
    }
  }
  if (lacking != nullptr) decision.why_not = Describe(histories, *lacking);
  decision.may_go_on = lacking == nullptr && decision.outdated.empty();
  return decision;
}

}  // namespace baton::scheduler
