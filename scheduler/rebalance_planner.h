#ifndef BATON_SCHEDULER_REBALANCE_PLANNER_H_
#define BATON_SCHEDULER_REBALANCE_PLANNER_H_

// Decides, on the leader of a group of ranks, when the experts' placement changes, and leads the
// ranks through it: compute -> prepare on all ranks -> switch on all ranks at one named step, or
// back. Also brings a rank that has come back into service again. Each rank's own side is
// scheduler/expert_switch.h; docs/expert-placement.md tells the whole story. Pure: see
// scheduler/README.md. One thread calls it.
//
// The leader is the lowest rank that tokens are sent to. A leader that takes over after another was
// lost starts a planner of its own with what ResolveSwitch decided; what the old one had begun is
// dropped by every rank's Reform.

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/clock.h"
#include "scheduler/expert_placement.h"
#include "scheduler/expert_switch.h"
#include "scheduler/step.h"

namespace baton::scheduler {

struct RebalanceOptions {
  ExpertTopology topology;
  PlacementPolicy policy = PlacementPolicy::kAuto;
  bool survive_rank_loss = false;
  double keep_slack = 0.02;

  bool automatic = true;        // else on request alone (and after losing a rank)
  double min_gain = 0.05;       // share of the experts' time that an automatic rebalance must save
  double min_layer_tokens = 0;  // loads of fewer choices per layer (on average) are not acted on
  Duration interval = Duration::Millis(60'000);  // between two automatic rebalances at least
  Duration compute_timeout = Duration::Millis(30'000);
  Duration prepare_timeout = Duration::Millis(60'000);  // all ranks of one round
  Duration restore_retry = Duration::Millis(5'000);     // after a rank could not be taken back in
  // Copies that a rank keeps beside its slots until a switch. A placement with more is installed in
  // rounds of layers, each with its own switch; a layer is never divided.
  int32_t max_staged = 64;
  int32_t switch_lead_steps = 1;  // from the header that names the step to that step; >= 1
};

// --- events -------------------------------------------------------------------------------

// The group's loads now: [layers, experts], summed over its ranks.
struct LoadsMeasured {
  std::shared_ptr<const std::vector<double>> loads;
};
struct RebalanceRequested {};
struct PlacementComputed {
  uint64_t ticket = 0;
  absl::StatusOr<PlacementResult> result;
};
// The leader is about to send its header for this step. Steps ascend.
struct StepStarting {
  uint64_t step = 0;
};
// The group goes on with other ranks. Every rank that was there before has called Reform with what
// ResolveSwitch decided.
struct GroupFormed {
  std::vector<bool> present;  // [ranks]
  std::vector<bool> loaded;   // [ranks]: present all along, so that its slots are in place
  ActiveExperts active;       // the leader's, after Reform
};

using RebalanceEvent = std::variant<LoadsMeasured, RebalanceRequested, PlacementComputed,
                                    PrepareEnded, StepStarting, GroupFormed>;

// --- actions ------------------------------------------------------------------------------

// Call PlaceExperts off the loop's thread and answer with PlacementComputed.
struct ComputePlacement {
  uint64_t ticket = 0;
  std::shared_ptr<const PlacementRequest> request;
};
struct SendPrepare {
  int32_t rank = 0;  // may be the leader's own
  PrepareExperts message;
};
struct SendAbort {
  int32_t rank = 0;
  AbortPrepare message;
};
// Into the leader's header of the step that starts.
struct NameSwitch {
  SwitchNotice notice;
};
enum class RebalanceEnd : uint8_t {
  kInstalled,   // all layers
  kNotWorth,    // the placement in use is as good, or nearly
  kRolledBack,  // status says why; rounds that were switched before stay
  kRefused,     // a request came at a bad time; status says why
};
struct RebalanceEnded {
  RebalanceEnd end = RebalanceEnd::kInstalled;
  bool requested = false;
  double gain = 0;     // predicted, of the whole placement
  int32_t copies = 0;  // of the rounds that were switched
  absl::Status status;
};
struct RankRestored {
  int32_t rank = 0;
};
// Experts have no live replica: the group cannot go on. Nothing but this follows.
struct StopGroup {
  int32_t uncovered = 0;
};

using RebalanceAction = std::variant<ComputePlacement, SendPrepare, SendAbort, NameSwitch,
                                     RebalanceEnded, RankRestored, StopGroup>;

// Counters are of this step, gauges after it.
struct RebalanceReport {
  uint32_t switches = 0;
  uint32_t rollbacks = 0;
  uint32_t copies = 0;    // switched to
  uint32_t restored = 0;  // ranks taken back in
  uint32_t stale_messages = 0;
  // gauges
  uint64_t version = 0;
  int32_t masked = 0;       // ranks that no tokens are sent to
  int32_t uncovered = 0;    // (layer, expert) pairs without a live replica
  int32_t on_one_rank = 0;  // pairs that the loss of one more rank would uncover
  double balancedness = 1;  // of the last loads under the placement in use
  Duration placement_age;   // since the last switch, or since the planner began
};

using RebalanceSink = ActionSink<RebalanceAction, RebalanceReport>;

class RebalancePlanner {
 public:
  // `leader` is this rank, live in `active`. next_version: above all that were ever used (1 +
  // active.version for a new group). Ranks that are present but not live in `active` are restored.
  RebalancePlanner(const RebalanceOptions& options, int32_t leader, ActiveExperts active,
                   const std::vector<bool>& present, uint64_t next_version, Tick now);

  // Applies `events` in order, lets time pass to `now`, then begins what is due. `now` never goes
  // back.
  void Step(Tick now, absl::Span<const RebalanceEvent> events, RebalanceSink& sink);

  // When Step has something to do even without events.
  Tick NextWake() const;

  // A switch waits for steps: an idle group should run some.
  bool WantsSteps() const;

  const ActiveExperts& active() const { return active_; }

  // Aborts when the state contradicts itself. O(state).
  void CheckInvariants() const;

 private:
  enum class Phase : uint8_t { kIdle, kComputing, kPreparing, kSwitching, kStopped };

  // A rebalance that is under way, from its start to RebalanceEnded.
  struct Rebalance {
    bool requested = false;
    std::shared_ptr<const PlacementRequest> request;
    std::shared_ptr<const ExpertPlacement> goal;  // null while computing
    int32_t next_layer = 0;                       // of the round to come
    double gain = 0;
    int32_t copies = 0;
  };

  void Apply(Tick now, const LoadsMeasured& event, RebalanceSink& sink);
  void Apply(Tick now, const RebalanceRequested& event, RebalanceSink& sink);
  void Apply(Tick now, const PlacementComputed& event, RebalanceSink& sink);
  void Apply(Tick now, const PrepareEnded& event, RebalanceSink& sink);
  void Apply(Tick now, const StepStarting& event, RebalanceSink& sink);
  void Apply(Tick now, const GroupFormed& event, RebalanceSink& sink);

  void Expire(Tick now, RebalanceSink& sink);
  void BeginWhatIsDue(Tick now, RebalanceSink& sink);
  bool AutomaticIsDue(Tick now);
  bool ProtectionIsDue(Tick now);
  void ProtectLater(Tick now);
  void Compute(Tick now, bool requested, RebalanceSink& sink);
  void BeginRound(Tick now, RebalanceSink& sink);
  void BeginRestore(Tick now, RebalanceSink& sink);
  void SendRound(Tick now, RebalanceSink& sink);
  int32_t LastLayerOfRound() const;
  void FinishSwitch(Tick now, RebalanceSink& sink);
  void RollBack(Tick now, absl::Status status, RebalanceSink& sink);
  void End(RebalanceEnd end, absl::Status status, RebalanceSink& sink);
  void FillReport(Tick now, RebalanceReport& report);
  std::vector<bool> Returned() const;  // present, not live

  const RebalanceOptions options_;
  const int32_t leader_;
  ActiveExperts active_;
  std::vector<bool> present_;
  uint64_t next_version_;
  uint64_t ticket_ = 0;
  std::shared_ptr<const std::vector<double>> loads_;  // null before the first measurement

  Phase phase_ = Phase::kIdle;
  std::optional<Rebalance> rebalance_;  // without one, rounds restore ranks
  ActiveExperts target_;                // of the round; version 0: none
  std::set<int32_t> waiting_;           // ranks that have not prepared it
  int32_t round_copies_ = 0;
  uint64_t switch_at_ = 0;
  Tick deadline_ = Tick::Infinite();  // of the phase
  Tick next_automatic_;
  Tick next_restore_;
  Tick placed_at_;
  RebalanceReport figures_;    // gauges that cost a walk over the placement
  bool figures_stale_ = true;  // the placement, the ranks or the loads have changed
  // A rank was lost or is back, or a try has failed: see whether experts that are on one rank alone
  // can be protected (survive_rank_loss).
  bool protect_ = false;
  Tick next_protect_;
};

}  // namespace baton::scheduler

#endif  // BATON_SCHEDULER_REBALANCE_PLANNER_H_
