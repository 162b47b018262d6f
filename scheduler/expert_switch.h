#ifndef BATON_SCHEDULER_EXPERT_SWITCH_H_
#define BATON_SCHEDULER_EXPERT_SWITCH_H_

// How the ranks of a group go from one placement to the next while tokens flow: the messages, what
// each rank has to copy, and each rank's side of the switch (ExpertSlots). The leader's side is
// scheduler/rebalance_planner.h; docs/expert-placement.md tells the whole story. Pure; one thread
// per rank calls its ExpertSlots.
//
//   leader -> rank   PrepareExperts    copy these experts beside the ones in use
//   rank -> leader   PrepareEnded      all there (or why not)
//   leader -> all    SwitchNotice      in a step's header: use that version from step `at_step` on
//   leader -> rank   AbortPrepare      instead: drop the copies

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "scheduler/expert_placement.h"

namespace baton::scheduler {

// A placement in use. Versions are counted by the group's leaders from 1 and never reused.
struct ActiveExperts {
  uint64_t version = 0;
  std::shared_ptr<const ExpertPlacement> placement;  // never null
  std::vector<bool> live;                            // [ranks]: tokens go to these alone
};

inline constexpr int32_t kFromCheckpoint = -1;

struct ExpertCopy {
  int32_t layer = 0;
  int32_t slot = 0;  // of the layer, on the rank that copies
  int32_t expert = 0;
  // A rank in whose slots the expert stands until the switch (the copying rank itself, where it
  // only changes its slot), or kFromCheckpoint.
  int32_t source = kFromCheckpoint;
  friend bool operator==(const ExpertCopy&, const ExpertCopy&) = default;
};

struct PrepareExperts {
  int32_t leader = 0;    // the rank that sends this
  ActiveExperts target;  // to be used after the switch
  std::vector<ExpertCopy> copies;
};
struct PrepareEnded {
  int32_t rank = 0;
  uint64_t version = 0;
  absl::Status status;  // not OK: the rank could not prepare, and has dropped its copies
};
struct AbortPrepare {
  uint64_t version = 0;
};
// Part of the leader's step header; version 0: nothing to switch.
struct SwitchNotice {
  uint64_t version = 0;
  uint64_t at_step = 0;
  friend bool operator==(const SwitchNotice&, const SwitchNotice&) = default;
};

// What each rank must copy to go from one placement to another: [ranks] lists, by layer and slot.
// `holders`: ranks whose slots hold what `from` says; the others' hold nothing. `targets`: ranks
// that get a list. Sources are spread so that no holder serves many more copies than another, the
// copying rank itself first, then its node, then the group.
std::vector<std::vector<ExpertCopy>> PlanCopies(const ExpertTopology& topology,
                                                const ExpertPlacement& from,
                                                const ExpertPlacement& to,
                                                const std::vector<bool>& holders,
                                                const std::vector<bool>& targets);

// What a live rank knows of a switch when its group forms anew after losing a rank.
struct SwitchState {
  uint64_t active = 0;     // version in use
  uint64_t preparing = 0;  // version being prepared or prepared; 0: none
  bool prepared = false;   // `preparing` is complete on this rank
};
struct SwitchDecision {
  uint64_t version = 0;       // all live ranks go on with this one
  uint64_t next_version = 0;  // the first that a new leader may use
};
// Forward when any rank has already switched: all the others are then prepared. Otherwise back,
// unless `prefer_forward` (the new placement covers more experts without the lost rank) and all are
// prepared for the same version. The same states give the same answer on every rank. INTERNAL when
// the states contradict the protocol.
absl::StatusOr<SwitchDecision> ResolveSwitch(std::span<const SwitchState> states,
                                             bool prefer_forward);

// One rank's slots: which expert's weights stand where, and which are being copied beside them.
class ExpertSlots {
 public:
  // loaded: this rank's slots hold what `active` says; else nothing (a rank that came back).
  ExpertSlots(int32_t rank, int32_t leader, ActiveExperts active, bool loaded);

  // Begins to prepare: the caller makes the copies into spare memory, reports each to CopyDone and
  // may send PrepareEnded once prepared(version). Replaces an older preparation. Copies are
  // checked: INVALID_ARGUMENT when they do not lead to the target, FAILED_PRECONDITION for a leader
  // that is not this group's or a version that is not newer.
  absl::Status Prepare(const PrepareExperts& message);
  // False when nobody waits for this copy any more: drop it.
  bool CopyDone(uint64_t version, int32_t layer, int32_t slot);
  void Abort(uint64_t version);  // older or unknown versions: nothing to do

  // Before each step, with the notice in the leader's header of that step. From its return on,
  // active() is what the step uses. INTERNAL when a switch is due that this rank is not prepared
  // for, or whose step it has missed: it must leave the group.
  absl::Status BeginStep(uint64_t step, const SwitchNotice& notice);

  // The group has formed anew with these ranks: version is ResolveSwitch's. Whatever else was being
  // prepared is dropped. INTERNAL when this rank can use that version neither now nor by switching.
  absl::Status Reform(uint64_t version, int32_t leader, const std::vector<bool>& live);

  const ActiveExperts& active() const { return active_; }
  // What is being prepared, or prepared; version 0: nothing.
  const ActiveExperts& target() const { return target_; }
  bool prepared(uint64_t version) const;
  SwitchState state() const;
  // Expert whose weights stand in a slot of this rank for the steps now; -1: none. slot is the
  // layer's, as everywhere.
  int32_t Held(int32_t layer, int32_t slot) const;
  // Copies that wait beside the slots, of those in `copies`.
  int32_t staged() const { return static_cast<int32_t>(staged_.size()); }

  // Aborts unless every slot that tokens may be sent to holds what the active placement says.
  void CheckInvariants() const;

 private:
  using Place = std::pair<int32_t, int32_t>;  // layer, slot

  int32_t first_slot() const { return rank_ * active_.placement->slots_per_rank(); }
  int32_t& HeldAt(int32_t layer, int32_t slot);
  bool LeadsToTarget(const PrepareExperts& message) const;
  void Switch();
  void Drop();

  const int32_t rank_;
  int32_t leader_;
  ActiveExperts active_;
  std::vector<int32_t> held_;         // [layers, slots_per_rank]; -1: nothing
  ActiveExperts target_;              // version 0: nothing is being prepared
  std::map<Place, int32_t> missing_;  // experts still to be copied
  std::map<Place, int32_t> staged_;   // copied, not yet in use
  uint64_t switch_at_ = 0;            // step; 0: not named
};

}  // namespace baton::scheduler

#endif  // BATON_SCHEDULER_EXPERT_SWITCH_H_
