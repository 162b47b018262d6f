#include "scheduler/expert_switch.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace baton::scheduler {
namespace {

// Where the copies of one transition come from.
class SourceChooser {
 public:
  SourceChooser(const ExpertTopology& topology, const ExpertPlacement& from,
                const std::vector<bool>& holders)
      : topology_(topology), from_(from), holders_(holders), served_(topology.ranks) {}

  int32_t Choose(int32_t layer, int32_t expert, int32_t rank) {
    int32_t best = kFromCheckpoint;
    const auto key = [&](int32_t r) {
      return std::make_pair(topology_.node_of(r) != topology_.node_of(rank), served_[r]);
    };
    for (int32_t slot : from_.Replicas(layer, expert)) {
      const int32_t holder = from_.rank_of(slot);
      if (!holders_[holder]) continue;
      if (holder == rank) return rank;
      if (best == kFromCheckpoint || key(holder) < key(best)) best = holder;
    }
    if (best != kFromCheckpoint) ++served_[best];
    return best;
  }

 private:
  const ExpertTopology& topology_;
  const ExpertPlacement& from_;
  const std::vector<bool>& holders_;
  std::vector<int32_t> served_;  // copies of each rank
};

absl::Status Contradiction(const std::string& what) {
  return absl::InternalError(
      absl::StrCat("expert switch: ", what, ": the group must be started anew"));
}

}  // namespace

std::vector<std::vector<ExpertCopy>> PlanCopies(const ExpertTopology& topology,
                                                const ExpertPlacement& from,
                                                const ExpertPlacement& to,
                                                const std::vector<bool>& holders,
                                                const std::vector<bool>& targets) {
  BATON_CHECK_EQ(holders.size(), static_cast<size_t>(topology.ranks));
  BATON_CHECK_EQ(targets.size(), static_cast<size_t>(topology.ranks));
  SourceChooser sources(topology, from, holders);
  std::vector<std::vector<ExpertCopy>> copies(topology.ranks);
  for (int32_t l = 0; l < topology.layers; ++l) {
    const auto before = from.Slots(l);
    const auto after = to.Slots(l);
    for (int32_t s = 0; s < topology.slots(); ++s) {
      const int32_t rank = from.rank_of(s);
      if (!targets[rank] || (holders[rank] && before[s] == after[s])) continue;
      copies[rank].push_back({l, s, after[s], sources.Choose(l, after[s], rank)});
    }
  }
  return copies;
}

absl::StatusOr<SwitchDecision> ResolveSwitch(std::span<const SwitchState> states,
                                             bool prefer_forward) {
  BATON_CHECK(!states.empty());
  uint64_t oldest = states[0].active;
  uint64_t newest = states[0].active;
  SwitchDecision decision;
  for (const SwitchState& state : states) {
    oldest = std::min(oldest, state.active);
    newest = std::max(newest, state.active);
    decision.next_version =
        std::max({decision.next_version, state.active + 1, state.preparing + 1});
  }
  const auto ready = [](const SwitchState& state, uint64_t version) {
    return state.active == version || (state.prepared && state.preparing == version);
  };
  decision.version = newest;
  if (oldest == newest && prefer_forward && states[0].preparing > newest &&
      std::all_of(states.begin(), states.end(),
                  [&](const SwitchState& state) { return ready(state, states[0].preparing); })) {
    decision.version = states[0].preparing;
  }
  for (const SwitchState& state : states) {
    if (ready(state, decision.version)) continue;
    return Contradiction(absl::StrCat("a rank uses placement ", decision.version,
                                      ", and another, at ", state.active,
                                      ", was not prepared for it"));
  }
  return decision;
}

// --- ExpertSlots ----------------------------------------------------------------------------

ExpertSlots::ExpertSlots(int32_t rank, int32_t leader, ActiveExperts active, bool loaded)
    : rank_(rank), leader_(leader), active_(std::move(active)) {
  BATON_CHECK(active_.placement != nullptr && active_.version > 0);
  const ExpertPlacement& placement = *active_.placement;
  BATON_CHECK(rank >= 0 && rank < placement.ranks());
  BATON_CHECK_EQ(active_.live.size(), static_cast<size_t>(placement.ranks()));
  BATON_CHECK_MSG(loaded || !active_.live[rank], "tokens would go to a rank without weights");
  for (int32_t l = 0; l < placement.layers(); ++l) {
    const auto mine = placement.Slots(l).subspan(first_slot(), placement.slots_per_rank());
    held_.insert(held_.end(), mine.begin(), mine.end());
  }
  if (!loaded) std::fill(held_.begin(), held_.end(), -1);
}

int32_t& ExpertSlots::HeldAt(int32_t layer, int32_t slot) {
  const int32_t per_rank = active_.placement->slots_per_rank();
  BATON_CHECK(layer >= 0 && layer < active_.placement->layers());
  BATON_CHECK(slot >= first_slot() && slot < first_slot() + per_rank);
  return held_[static_cast<size_t>(layer) * per_rank + (slot - first_slot())];
}

int32_t ExpertSlots::Held(int32_t layer, int32_t slot) const {
  return const_cast<ExpertSlots*>(this)->HeldAt(layer, slot);
}

bool ExpertSlots::LeadsToTarget(const PrepareExperts& message) const {
  const ExpertPlacement& target = *message.target.placement;
  std::map<Place, int32_t> copied;
  for (const ExpertCopy& copy : message.copies) {
    if (copy.layer < 0 || copy.layer >= target.layers() || copy.slot < first_slot() ||
        copy.slot >= first_slot() + target.slots_per_rank()) {
      return false;
    }
    copied[{copy.layer, copy.slot}] = copy.expert;
  }
  // A rank that tokens will not be sent to may hold anything.
  for (int32_t l = 0; message.target.live[rank_] && l < target.layers(); ++l) {
    for (int32_t s = first_slot(); s < first_slot() + target.slots_per_rank(); ++s) {
      const auto it = copied.find({l, s});
      if ((it != copied.end() ? it->second : Held(l, s)) != target.Slots(l)[s]) return false;
    }
  }
  return true;
}

absl::Status ExpertSlots::Prepare(const PrepareExperts& message) {
  const ActiveExperts& target = message.target;
  if (message.leader != leader_) {
    return absl::FailedPreconditionError(absl::StrCat(
        "placement ", target.version, " comes from rank ", message.leader, ", the leader is rank ",
        leader_, ": only the group's leader may change its placement"));
  }
  if (target.version <= std::max(active_.version, target_.version)) {
    return absl::FailedPreconditionError(
        absl::StrCat("placement ", target.version, " is not newer than ",
                     std::max(active_.version, target_.version), ": versions only grow"));
  }
  const ExpertPlacement& now = *active_.placement;
  if (target.placement == nullptr || target.placement->layers() != now.layers() ||
      target.placement->experts() != now.experts() || target.placement->ranks() != now.ranks() ||
      target.placement->slots_per_rank() != now.slots_per_rank() ||
      target.live.size() != static_cast<size_t>(now.ranks()) || !LeadsToTarget(message)) {
    return absl::InvalidArgumentError(
        absl::StrCat("placement ", target.version, " does not follow from this rank's slots and ",
                     message.copies.size(), " copies: the leader does not know this rank's slots"));
  }
  BATON_CHECK_MSG(switch_at_ == 0, "the leader prepares anew after it has named a switch");
  Drop();
  target_ = target;
  for (const ExpertCopy& copy : message.copies) missing_[{copy.layer, copy.slot}] = copy.expert;
  return absl::OkStatus();
}

bool ExpertSlots::CopyDone(uint64_t version, int32_t layer, int32_t slot) {
  if (version == 0 || version != target_.version) return false;
  const auto it = missing_.find({layer, slot});
  if (it == missing_.end()) return false;
  staged_.insert(*it);
  missing_.erase(it);
  return true;
}

void ExpertSlots::Abort(uint64_t version) {
  if (version == 0 || version != target_.version) return;
  BATON_CHECK_MSG(switch_at_ == 0, "the leader aborts a switch that it has named");
  Drop();
}

bool ExpertSlots::prepared(uint64_t version) const {
  return version > 0 && version == target_.version && missing_.empty();
}

SwitchState ExpertSlots::state() const {
  return {active_.version, target_.version, prepared(target_.version)};
}

absl::Status ExpertSlots::BeginStep(uint64_t step, const SwitchNotice& notice) {
  if (notice.version > active_.version) {
    if (!prepared(notice.version)) {
      return Contradiction(absl::StrCat("rank ", rank_, " is to use placement ", notice.version,
                                        " from step ", notice.at_step,
                                        " on, and is not prepared for it"));
    }
    switch_at_ = notice.at_step;
  }
  if (switch_at_ == 0 || step < switch_at_) return absl::OkStatus();
  if (step > switch_at_) {
    return Contradiction(absl::StrCat("rank ", rank_, " begins step ", step,
                                      " and has missed the switch at step ", switch_at_));
  }
  Switch();
  return absl::OkStatus();
}

absl::Status ExpertSlots::Reform(uint64_t version, int32_t leader, const std::vector<bool>& live) {
  BATON_CHECK_EQ(live.size(), active_.live.size());
  if (version != active_.version) {
    if (!prepared(version)) {
      return Contradiction(absl::StrCat("rank ", rank_, " at placement ", active_.version,
                                        " cannot go on with ", version));
    }
    Switch();
  }
  Drop();
  leader_ = leader;
  for (size_t r = 0; r < live.size(); ++r) active_.live[r] = active_.live[r] && live[r];
  return absl::OkStatus();
}

void ExpertSlots::Switch() {
  for (const auto& [place, expert] : staged_) HeldAt(place.first, place.second) = expert;
  staged_.clear();
  active_ = std::exchange(target_, {});
  switch_at_ = 0;
  CheckInvariants();
}

void ExpertSlots::Drop() {
  target_ = {};
  missing_.clear();
  staged_.clear();
  switch_at_ = 0;
}

void ExpertSlots::CheckInvariants() const {
  BATON_CHECK(target_.version == 0 || target_.version > active_.version);
  BATON_CHECK(target_.version > 0 || (missing_.empty() && staged_.empty() && switch_at_ == 0));
  if (!active_.live[rank_]) return;
  const ExpertPlacement& placement = *active_.placement;
  for (int32_t l = 0; l < placement.layers(); ++l) {
    for (int32_t s = first_slot(); s < first_slot() + placement.slots_per_rank(); ++s) {
      BATON_CHECK_EQ(Held(l, s), placement.Slots(l)[s]);
    }
  }
}

}  // namespace baton::scheduler
