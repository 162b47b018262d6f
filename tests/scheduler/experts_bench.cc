// What placing experts costs at the size of DeepSeek-V3: 61 layers (all of them, to be safe) of 256
// experts in 320 slots. Computing a placement has a thread of its own; the rest (OnLeader...,
// OnRank..., Figures) stands between two steps. Not a test: `ninja experts_bench &&
// tests/scheduler/experts_bench`.

#include <cmath>
#include <memory>
#include <vector>

#include "base/check.h"
#include "base/random.h"
#include "benchmark/benchmark.h"
#include "scheduler/expert_load.h"
#include "scheduler/expert_placement.h"
#include "scheduler/expert_routing.h"
#include "scheduler/expert_switch.h"
#include "scheduler/rebalance_planner.h"

namespace baton::scheduler {
namespace {

constexpr int32_t kLayers = 61;
constexpr int32_t kExperts = 256;

// A power law: the hottest expert of a layer gets 256 times the tokens of the coldest.
PlacementRequest Request(int32_t ranks, bool survive) {
  PlacementRequest request;
  request.topology.layers = kLayers;
  request.topology.experts = kExperts;
  request.topology.ranks = ranks;
  request.topology.slots_per_rank = SlotsPerRank(kExperts, 64, ranks);
  request.survive_rank_loss = survive;
  Rng rng(1);
  for (int32_t i = 0; i < kLayers * kExperts; ++i) {
    request.loads.push_back(std::floor(1e6 / (1.0 + static_cast<double>(rng.Below(kExperts)))));
  }
  return request;
}

PlacementResult Place(const PlacementRequest& request) {
  absl::StatusOr<PlacementResult> result = PlaceExperts(request);
  BATON_CHECK(result.ok());
  return *std::move(result);
}

// Ranks, survive_rank_loss.
void Fresh(benchmark::State& state) {
  const auto request = Request(static_cast<int32_t>(state.range(0)), state.range(1) != 0);
  for (auto _ : state) benchmark::DoNotOptimize(Place(request).copies);
}

// After every load has changed by up to a fifth.
void FromPrevious(benchmark::State& state) {
  auto request = Request(static_cast<int32_t>(state.range(0)), state.range(1) != 0);
  const auto before = std::make_shared<ExpertPlacement>(Place(request).placement);
  Rng rng(2);
  for (double& load : request.loads) load = std::floor(load * (0.8 + 0.4 * rng.Uniform()));
  int32_t from_scratch = 0;
  const PlacementResult fresh = Place(request);
  for (int32_t r = 0; r < request.topology.ranks; ++r) {
    from_scratch += CountCopies(*before, fresh.placement, r);
  }
  request.previous = before;
  int32_t copies = 0;
  for (auto _ : state) copies = Place(request).copies;
  state.counters["copies"] = copies;
  state.counters["copies_from_scratch"] = from_scratch;
}

// One layer's tokens of a prefill chunk over TP 8.
void Split(benchmark::State& state) {
  const auto request = Request(8, false);
  const ExpertPlacement placement = Place(request).placement;
  std::vector<int32_t> tokens;
  for (int32_t e = 0; e < kExperts; ++e) {
    tokens.push_back(static_cast<int32_t>(request.loads[e] / 1000));
  }
  for (auto _ : state) benchmark::DoNotOptimize(SplitTokens(placement, 0, {}, tokens).data());
}

// A placement in use, and the next one for loads that have changed.
struct Change {
  explicit Change(int32_t ranks) : request(Request(ranks, false)) {
    now = {1, std::make_shared<ExpertPlacement>(Place(request).placement),
           std::vector<bool>(static_cast<size_t>(ranks), true)};
    Rng rng(2);
    for (double& load : request.loads) load = std::floor(load * (0.8 + 0.4 * rng.Uniform()));
    request.previous = now.placement;
    next = Place(request);
  }
  PrepareExperts Message(int32_t rank) const {
    PrepareExperts message{0, now, {}};
    message.target.version = 2;
    message.target.placement = std::make_shared<ExpertPlacement>(next.placement);
    message.copies = PlanCopies(request.topology, *now.placement, next.placement, now.live,
                                now.live)[static_cast<size_t>(rank)];
    return message;
  }

  PlacementRequest request;
  ActiveExperts now;
  PlacementResult next;
};

// The leader's step from a computed placement to the messages for all ranks; all layers at once.
void OnLeaderPrepare(benchmark::State& state) {
  const Change change(static_cast<int32_t>(state.range(0)));
  RebalanceOptions options;
  options.topology = change.request.topology;
  options.max_staged = kLayers * options.topology.slots_per_rank;
  const auto loads = std::make_shared<std::vector<double>>(change.request.loads);
  for (auto _ : state) {
    state.PauseTiming();
    RebalancePlanner planner(options, 0, change.now, change.now.live, 2, Tick());
    RebalanceSink sink;
    planner.Step(Tick(), {LoadsMeasured{loads}, RebalanceRequested{}}, sink);
    sink.Clear();
    const RebalanceEvent computed = PlacementComputed{1, change.next};
    state.ResumeTiming();
    planner.Step(Tick(), absl::MakeConstSpan(&computed, 1), sink);
    BATON_CHECK(sink.actions.size() >= change.now.live.size());
  }
}

// A rank takes the message, and later switches.
void OnRankSwitch(benchmark::State& state) {
  const Change change(static_cast<int32_t>(state.range(0)));
  const PrepareExperts message = change.Message(1);
  for (auto _ : state) {
    state.PauseTiming();
    ExpertSlots slots(1, 0, change.now, true);
    state.ResumeTiming();
    BATON_CHECK(slots.Prepare(message).ok());
    for (const ExpertCopy& copy : message.copies) slots.CopyDone(2, copy.layer, copy.slot);
    BATON_CHECK(slots.BeginStep(5, {2, 5}).ok());
  }
  state.counters["copies"] = static_cast<double>(message.copies.size());
}

// What is published after a switch.
void Figures(benchmark::State& state) {
  const Change change(static_cast<int32_t>(state.range(0)));
  const ExpertPlacement& placement = *change.now.placement;
  for (auto _ : state) {
    benchmark::DoNotOptimize(CountUncovered(placement, change.now.live));
    benchmark::DoNotOptimize(CountOnOneRank(placement, change.now.live));
    benchmark::DoNotOptimize(Balancedness(placement, change.request.loads, change.now.live));
  }
}

BENCHMARK(OnLeaderPrepare)->Arg(8)->Arg(32)->Arg(64)->Unit(benchmark::kMicrosecond);
BENCHMARK(OnRankSwitch)->Arg(8)->Arg(32)->Arg(64)->Unit(benchmark::kMicrosecond);
BENCHMARK(Figures)->Arg(8)->Arg(32)->Arg(64)->Unit(benchmark::kMicrosecond);
BENCHMARK(Fresh)->ArgsProduct({{8, 32, 64}, {0, 1}})->Unit(benchmark::kMillisecond);
BENCHMARK(FromPrevious)->ArgsProduct({{8, 32, 64}, {0, 1}})->Unit(benchmark::kMillisecond);
BENCHMARK(Split)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace baton::scheduler

BENCHMARK_MAIN();
