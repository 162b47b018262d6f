// How long a placement takes at the size of DeepSeek-V3: 61 layers (all of them, to be safe) of 256
// experts in 320 slots. Not a test: `ninja experts_bench && tests/scheduler/experts_bench`.

#include <cmath>
#include <memory>
#include <vector>

#include "base/check.h"
#include "base/random.h"
#include "benchmark/benchmark.h"
#include "scheduler/expert_placement.h"
#include "scheduler/expert_routing.h"

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

BENCHMARK(Fresh)->ArgsProduct({{8, 32, 64}, {0, 1}})->Unit(benchmark::kMillisecond);
BENCHMARK(FromPrevious)->ArgsProduct({{8, 32, 64}, {0, 1}})->Unit(benchmark::kMillisecond);
BENCHMARK(Split)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace baton::scheduler

BENCHMARK_MAIN();
