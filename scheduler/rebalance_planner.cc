#include "scheduler/rebalance_planner.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/check.h"
#include "scheduler/expert_load.h"
#include "scheduler/expert_routing.h"

namespace baton::scheduler {
namespace {

double TokensPerLayer(const std::vector<double>& loads, int32_t layers) {
  return std::accumulate(loads.begin(), loads.end(), 0.0) / layers;
}

std::string Seconds(Duration d) { return absl::StrCat(d.seconds(), " s"); }

}  // namespace

RebalancePlanner::RebalancePlanner(const RebalanceOptions& options, int32_t leader,
                                   ActiveExperts active, const std::vector<bool>& present,
                                   uint64_t next_version, Tick now)
    : options_(options),
      leader_(leader),
      active_(std::move(active)),
      present_(present),
      next_version_(next_version),
      next_automatic_(now + options.interval),
      next_restore_(now),
      placed_at_(now) {
  BATON_CHECK(CheckTopology(options.topology).ok());
  BATON_CHECK(options.max_staged >= 1 && options.switch_lead_steps >= 1);
  BATON_CHECK(active_.placement != nullptr && active_.version < next_version);
  BATON_CHECK_EQ(CountUncovered(*active_.placement, active_.live), 0);
  protect_ = std::count(active_.live.begin(), active_.live.end(), false) > 0;
  CheckInvariants();
}

void RebalancePlanner::Step(Tick now, absl::Span<const RebalanceEvent> events,
                            RebalanceSink& sink) {
  for (const RebalanceEvent& event : events) {
    if (phase_ == Phase::kStopped) break;
    std::visit([&](const auto& e) { Apply(now, e, sink); }, event);
  }
  if (phase_ != Phase::kStopped) {
    Expire(now, sink);
    BeginWhatIsDue(now, sink);
  }
  FillReport(now, sink.report);
}

// --- events -------------------------------------------------------------------------------

void RebalancePlanner::Apply(Tick, const LoadsMeasured& event, RebalanceSink&) {
  BATON_CHECK(event.loads != nullptr);
  BATON_CHECK_EQ(event.loads->size(),
                 static_cast<size_t>(options_.topology.layers) * options_.topology.experts);
  loads_ = event.loads;
  figures_stale_ = true;
}

void RebalancePlanner::Apply(Tick now, const RebalanceRequested&, RebalanceSink& sink) {
  absl::Status refusal;
  if (phase_ != Phase::kIdle || rebalance_.has_value()) {
    refusal = absl::UnavailableError(
        "the experts' placement is changing already: ask again when that has ended");
  } else if (loads_ == nullptr) {
    refusal = absl::FailedPreconditionError(
        "no expert loads were measured yet: send the group some requests first");
  }
  if (refusal.ok()) {
    Compute(now, true, sink);
  } else {
    sink.Add(RebalanceEnded{RebalanceEnd::kRefused, true, 0, 0, std::move(refusal)});
  }
}

void RebalancePlanner::Apply(Tick now, const PlacementComputed& event, RebalanceSink& sink) {
  if (phase_ != Phase::kComputing || event.ticket != ticket_) {
    ++sink.report.stale_messages;
    return;
  }
  phase_ = Phase::kIdle;
  deadline_ = Tick::Infinite();
  if (!event.result.ok()) {
    ProtectLater(now);
    End(RebalanceEnd::kRolledBack, event.result.status(), sink);
    return;
  }
  const PlacementResult& result = *event.result;
  const std::vector<double>& loads = rebalance_->request->loads;
  rebalance_->gain = PredictedGain(*active_.placement, result.placement, loads, active_.live);
  const bool protects = options_.survive_rank_loss &&
                        result.on_one_rank < CountOnOneRank(*active_.placement, active_.live);
  const double least = rebalance_->requested ? 1e-9 : options_.min_gain;
  if (!protects && rebalance_->gain < least) {
    End(RebalanceEnd::kNotWorth, absl::OkStatus(), sink);
    return;
  }
  rebalance_->goal = std::make_shared<const ExpertPlacement>(result.placement);
}

void RebalancePlanner::Apply(Tick now, const PrepareEnded& event, RebalanceSink& sink) {
  if (phase_ != Phase::kPreparing || event.version != target_.version ||
      waiting_.count(event.rank) == 0) {
    ++sink.report.stale_messages;
    return;
  }
  if (event.status.ok()) {
    waiting_.erase(event.rank);
    // The switch no longer waits for a rank, but for a step, which may be long in coming.
    if (waiting_.empty()) deadline_ = Tick::Infinite();
    return;
  }
  RollBack(
      now,
      absl::Status(
          event.status.code(),
          absl::StrCat("rank ", event.rank, " could not prepare placement ", event.version, ": ",
                       std::string(event.status.message().data(), event.status.message().size()))),
      sink);
}

void RebalancePlanner::Apply(Tick now, const StepStarting& event, RebalanceSink& sink) {
  if (phase_ == Phase::kPreparing && waiting_.empty()) {
    phase_ = Phase::kSwitching;
    switch_at_ = event.step + static_cast<uint64_t>(options_.switch_lead_steps);
    sink.Add(NameSwitch{{target_.version, switch_at_}});
  } else if (phase_ == Phase::kSwitching && event.step > switch_at_) {
    FinishSwitch(now, sink);
  }
}

void RebalancePlanner::Apply(Tick now, const GroupFormed& event, RebalanceSink& sink) {
  BATON_CHECK_EQ(event.present.size(), active_.live.size());
  BATON_CHECK_EQ(event.loaded.size(), active_.live.size());
  BATON_CHECK_MSG(event.present[leader_] && event.loaded[leader_], "the leader is not there");
  BATON_CHECK(event.active.version >= active_.version && event.active.version < next_version_);
  const std::vector<bool> before = active_.live;
  if (event.active.version == active_.version || event.active.version != target_.version) {
    if (phase_ != Phase::kIdle || rebalance_.has_value()) {
      RollBack(now, absl::AbortedError("the group's ranks have changed"), sink);
    }
    // Where all ranks were prepared for a version that this planner had given up, they may have
    // agreed to go on with it.
    if (event.active.version != active_.version) {
      target_ = event.active;
      round_copies_ = 0;
    }
  }
  if (target_.version > 0) {
    // Agreed by all, without waiting for the step.
    for (size_t r = 0; r < before.size(); ++r) {
      target_.live[r] = target_.live[r] && event.present[r] && event.loaded[r];
    }
    FinishSwitch(now, sink);
  }
  for (size_t r = 0; r < active_.live.size(); ++r) {
    active_.live[r] = active_.live[r] && event.present[r] && event.loaded[r];
    if (before[r] && !active_.live[r]) {
      protect_ = true;
      next_protect_ = now;
    }
  }
  present_ = event.present;
  figures_stale_ = true;
  next_restore_ = now;
  if (CountUncovered(*active_.placement, active_.live) > 0) {
    if (rebalance_.has_value()) {
      End(RebalanceEnd::kRolledBack, absl::AbortedError("the group stops"), sink);
    }
    phase_ = Phase::kStopped;
    deadline_ = Tick::Infinite();
    sink.Add(StopGroup{CountUncovered(*active_.placement, active_.live)});
  } else if (rebalance_.has_value()) {
    // A switch of one round went through, but the goal was made for other ranks.
    End(RebalanceEnd::kRolledBack, absl::AbortedError("the group's ranks have changed"), sink);
  }
}

// --- time -----------------------------------------------------------------------------------

void RebalancePlanner::Expire(Tick now, RebalanceSink& sink) {
  if (now < deadline_) return;
  deadline_ = Tick::Infinite();
  if (phase_ == Phase::kComputing) {
    phase_ = Phase::kIdle;
    ProtectLater(now);
    End(RebalanceEnd::kRolledBack,
        absl::DeadlineExceededError(
            absl::StrCat("no placement was computed within ", Seconds(options_.compute_timeout))),
        sink);
    return;
  }
  BATON_CHECK(phase_ == Phase::kPreparing);
  RollBack(now,
           absl::DeadlineExceededError(absl::StrCat(
               "rank(s) ", absl::StrJoin(waiting_, ", "), " have not prepared placement ",
               target_.version, " within ", Seconds(options_.prepare_timeout))),
           sink);
}

void RebalancePlanner::BeginWhatIsDue(Tick now, RebalanceSink& sink) {
  if (phase_ != Phase::kIdle) return;
  const std::vector<bool> returned = Returned();
  if (rebalance_.has_value()) {
    BeginRound(now, sink);
  } else if (now >= next_restore_ && std::count(returned.begin(), returned.end(), true) > 0) {
    BeginRestore(now, sink);
  } else if (AutomaticIsDue(now)) {
    Compute(now, false, sink);
  }
}

bool RebalancePlanner::ProtectionIsDue(Tick now) {
  if (!protect_ || now < next_protect_) return false;
  protect_ = false;
  // Only worth a try while the others have slots for every expert.
  const int64_t live = std::count(active_.live.begin(), active_.live.end(), true);
  return options_.survive_rank_loss &&
         live * options_.topology.slots_per_rank >= options_.topology.experts &&
         CountOnOneRank(*active_.placement, active_.live) > 0;
}

void RebalancePlanner::ProtectLater(Tick now) {
  protect_ = true;
  next_protect_ = now + options_.restore_retry;
}

bool RebalancePlanner::AutomaticIsDue(Tick now) {
  if (ProtectionIsDue(now)) return true;
  if (!options_.automatic || loads_ == nullptr || now < next_automatic_) return false;
  next_automatic_ = now + options_.interval;
  if (TokensPerLayer(*loads_, options_.topology.layers) < options_.min_layer_tokens) return false;
  // No placement can save more than what makes all ranks even.
  return 1 - Balancedness(*active_.placement, *loads_, active_.live) >= options_.min_gain;
}

Tick RebalancePlanner::NextWake() const {
  if (phase_ == Phase::kStopped) return Tick::Infinite();
  if (phase_ != Phase::kIdle) return deadline_;
  Tick wake = Tick::Infinite();
  if (options_.automatic && loads_ != nullptr) wake = next_automatic_;
  const std::vector<bool> returned = Returned();
  if (std::count(returned.begin(), returned.end(), true) > 0) wake = std::min(wake, next_restore_);
  if (protect_) wake = std::min(wake, next_protect_);
  return wake;
}

bool RebalancePlanner::WantsSteps() const {
  return phase_ == Phase::kSwitching || (phase_ == Phase::kPreparing && waiting_.empty());
}

// --- work -----------------------------------------------------------------------------------

void RebalancePlanner::Compute(Tick now, bool requested, RebalanceSink& sink) {
  auto request = std::make_shared<PlacementRequest>();
  request->topology = options_.topology;
  request->loads = loads_ != nullptr
                       ? *loads_
                       : std::vector<double>(static_cast<size_t>(options_.topology.layers) *
                                             options_.topology.experts);
  request->policy = options_.policy;
  if (std::count(active_.live.begin(), active_.live.end(), false) > 0) {
    request->live = active_.live;
    request->policy = PlacementPolicy::kGlobal;
  }
  request->survive_rank_loss = options_.survive_rank_loss;
  request->keep_slack = options_.keep_slack;
  request->previous = active_.placement;
  rebalance_ = Rebalance{requested, request, nullptr, 0, 0, 0};
  next_automatic_ = now + options_.interval;
  phase_ = Phase::kComputing;
  deadline_ = now + options_.compute_timeout;
  sink.Add(ComputePlacement{++ticket_, std::move(request)});
}

// One past the last layer whose copies still fit beside the slots of every rank.
int32_t RebalancePlanner::LastLayerOfRound() const {
  const ExpertPlacement& goal = *rebalance_->goal;
  std::vector<int32_t> staged(options_.topology.ranks);
  int32_t layer = rebalance_->next_layer;
  for (; layer < goal.layers(); ++layer) {
    const auto before = active_.placement->Slots(layer);
    const auto after = goal.Slots(layer);
    for (int32_t s = 0; s < goal.slots(); ++s) {
      staged[goal.rank_of(s)] += before[s] != after[s] && active_.live[goal.rank_of(s)];
    }
    const bool full = *std::max_element(staged.begin(), staged.end()) > options_.max_staged;
    if (full && layer > rebalance_->next_layer) break;
  }
  return layer;
}

void RebalancePlanner::BeginRound(Tick now, RebalanceSink& sink) {
  const int32_t last = LastLayerOfRound();
  target_.placement = std::make_shared<const ExpertPlacement>(
      active_.placement->WithLayers(*rebalance_->goal, rebalance_->next_layer, last));
  target_.live = active_.live;
  rebalance_->next_layer = last;
  SendRound(now, sink);
}

void RebalancePlanner::BeginRestore(Tick now, RebalanceSink& sink) {
  next_restore_ = now + options_.restore_retry;
  target_.placement = active_.placement;
  target_.live = present_;
  SendRound(now, sink);
}

void RebalancePlanner::SendRound(Tick now, RebalanceSink& sink) {
  target_.version = next_version_++;
  std::vector<std::vector<ExpertCopy>> copies = PlanCopies(
      options_.topology, *active_.placement, *target_.placement, active_.live, target_.live);
  phase_ = Phase::kPreparing;
  deadline_ = now + options_.prepare_timeout;
  round_copies_ = 0;
  for (int32_t r = 0; r < options_.topology.ranks; ++r) {
    if (!present_[r]) continue;
    round_copies_ += static_cast<int32_t>(copies[r].size());
    waiting_.insert(r);
    sink.Add(SendPrepare{r, {leader_, target_, std::move(copies[r])}});
  }
}

void RebalancePlanner::FinishSwitch(Tick now, RebalanceSink& sink) {
  for (int32_t r = 0; r < options_.topology.ranks; ++r) {
    if (!target_.live[r] || active_.live[r]) continue;
    ++sink.report.restored;
    sink.Add(RankRestored{r});
    protect_ = true;  // the others may have given up what it was needed for
    next_protect_ = now;
  }
  active_ = std::exchange(target_, {});
  phase_ = Phase::kIdle;
  deadline_ = Tick::Infinite();
  waiting_.clear();
  switch_at_ = 0;
  placed_at_ = now;
  figures_stale_ = true;
  ++sink.report.switches;
  sink.report.copies += static_cast<uint32_t>(round_copies_);
  if (!rebalance_.has_value()) return;
  rebalance_->copies += round_copies_;
  if (rebalance_->next_layer == active_.placement->layers()) {
    End(RebalanceEnd::kInstalled, absl::OkStatus(), sink);
  }
}

void RebalancePlanner::RollBack(Tick now, absl::Status status, RebalanceSink& sink) {
  if (phase_ == Phase::kPreparing) {
    for (int32_t r = 0; r < options_.topology.ranks; ++r) {
      if (present_[r]) sink.Add(SendAbort{r, {target_.version}});
    }
  }
  target_ = {};
  phase_ = Phase::kIdle;
  deadline_ = Tick::Infinite();
  waiting_.clear();
  switch_at_ = 0;
  next_restore_ = std::max(next_restore_, now + options_.restore_retry);
  ProtectLater(now);
  ++sink.report.rollbacks;
  if (rebalance_.has_value()) {
    End(RebalanceEnd::kRolledBack, std::move(status), sink);
  } else {
    sink.Add(RebalanceEnded{RebalanceEnd::kRolledBack, false, 0, 0, std::move(status)});
  }
}

void RebalancePlanner::End(RebalanceEnd end, absl::Status status, RebalanceSink& sink) {
  sink.Add(RebalanceEnded{end, rebalance_->requested, rebalance_->gain, rebalance_->copies,
                          std::move(status)});
  rebalance_.reset();
}

std::vector<bool> RebalancePlanner::Returned() const {
  std::vector<bool> returned(present_.size());
  for (size_t r = 0; r < present_.size(); ++r) returned[r] = present_[r] && !active_.live[r];
  return returned;
}

void RebalancePlanner::FillReport(Tick now, RebalanceReport& report) {
  if (std::exchange(figures_stale_, false)) {
    figures_.masked =
        static_cast<int32_t>(std::count(active_.live.begin(), active_.live.end(), false));
    figures_.uncovered = CountUncovered(*active_.placement, active_.live);
    figures_.on_one_rank = CountOnOneRank(*active_.placement, active_.live);
    figures_.balancedness =
        loads_ != nullptr ? Balancedness(*active_.placement, *loads_, active_.live) : 1.0;
  }
  report.version = active_.version;
  report.masked = figures_.masked;
  report.uncovered = figures_.uncovered;
  report.on_one_rank = figures_.on_one_rank;
  report.balancedness = figures_.balancedness;
  report.placement_age = now - placed_at_;
}

void RebalancePlanner::CheckInvariants() const {
  BATON_CHECK(active_.version < next_version_);
  BATON_CHECK(phase_ == Phase::kStopped || active_.live[leader_]);
  const bool round = phase_ == Phase::kPreparing || phase_ == Phase::kSwitching;
  BATON_CHECK_EQ(round, target_.version > 0);
  BATON_CHECK(!round || (target_.version > active_.version && target_.version < next_version_));
  BATON_CHECK(waiting_.empty() || phase_ == Phase::kPreparing);
  // Nothing waits without a bound, but for a step.
  BATON_CHECK_EQ(!deadline_.infinite(), phase_ == Phase::kComputing || !waiting_.empty());
  BATON_CHECK(phase_ != Phase::kComputing || (rebalance_.has_value() && !rebalance_->goal));
  for (size_t r = 0; r < present_.size(); ++r) BATON_CHECK(present_[r] || !active_.live[r]);
}

}  // namespace baton::scheduler
