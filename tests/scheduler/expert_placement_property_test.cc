// Random shapes and loads, even to very skewed: never heavier than the published algorithm, always
// a placement, protected where slots allow, and few moves from one placement to the next.

#include <algorithm>
#include <cmath>
#include <memory>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "base/random.h"
#include "gtest/gtest.h"
#include "scheduler/expert_placement.h"
#include "tests/scheduler/eplb_oracle.h"

namespace baton::scheduler {
namespace {

constexpr double kRounding = 1 + 1e-9;

int32_t Pick(Rng& rng, std::initializer_list<int32_t> values) {
  return values.begin()[rng.Below(values.size())];
}

ExpertTopology RandomTopology(Rng& rng) {
  ExpertTopology t;
  t.layers = 1 + static_cast<int32_t>(rng.Below(2));
  t.experts = Pick(rng, {4, 8, 12, 16, 20, 33, 64});
  t.groups = Pick(rng, {1, 2, 4});
  const int32_t nodes = Pick(rng, {1, 1, 2, 4});
  t.ranks = nodes * Pick(rng, {1, 2, 4});
  t.ranks_per_node = t.ranks / nodes;
  t.slots_per_rank =
      SlotsPerRank(t.experts, static_cast<int32_t>(rng.Below(2 * t.experts)), t.ranks);
  return t;
}

// Token counts: even, random, by a power law, or with idle experts.
std::vector<double> RandomLoads(const ExpertTopology& t, Rng& rng) {
  std::vector<double> loads(static_cast<size_t>(t.layers) * t.experts);
  const uint64_t kind = rng.Below(4);
  const double exponent = 0.5 + 2 * rng.Uniform();
  for (double& load : loads) {
    switch (kind) {
      case 0:
        load = 100;
        break;
      case 1:
        load = static_cast<double>(rng.Below(1000));
        break;
      case 2:
        load = std::floor(1e5 * std::pow(1.0 + rng.Below(t.experts), -exponent));
        break;
      default:
        load = rng.Chance(0.6) ? 0 : static_cast<double>(rng.Below(100));
    }
  }
  return loads;
}

PlacementRequest RandomRequest(Rng& rng) {
  PlacementRequest request;
  request.topology = RandomTopology(rng);
  request.loads = RandomLoads(request.topology, rng);
  return request;
}

PlacementResult Place(const PlacementRequest& request) {
  absl::StatusOr<PlacementResult> result = PlaceExperts(request);
  EXPECT_TRUE(result.ok()) << result.status();
  return *std::move(result);
}

oracle::Loads LayerLoads(const PlacementRequest& request, int32_t layer) {
  const auto first = request.loads.begin() + layer * request.topology.experts;
  return {first, first + request.topology.experts};
}

double MaxLoad(const PlacementRequest& request, const ExpertPlacement& placement, int32_t layer) {
  return oracle::MaxLoad(LayerLoads(request, layer), placement.Slots(layer),
                         request.topology.ranks);
}

// Replicas of one expert stay on one node under the hierarchical policy.
void CheckNodes(const ExpertTopology& t, const ExpertPlacement& placement) {
  for (int32_t l = 0; l < t.layers; ++l) {
    for (int32_t e = 0; e < t.experts; ++e) {
      std::set<int32_t> nodes;
      for (int32_t s : placement.Replicas(l, e)) nodes.insert(t.node_of(placement.rank_of(s)));
      EXPECT_EQ(nodes.size(), 1u) << "layer " << l << " expert " << e;
    }
  }
}

TEST(ExpertPlacementProperty, NeverHeavierThanThePublishedAlgorithm) {
  int lighter = 0;
  for (uint64_t seed = 0; seed < 1000; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    const PlacementRequest request = RandomRequest(rng);
    const ExpertTopology& t = request.topology;
    const PlacementResult result = Place(request);
    const bool hierarchical = t.experts % t.groups == 0 && t.groups % t.nodes() == 0;
    ASSERT_EQ(result.policy == PlacementPolicy::kHierarchical, hierarchical);
    if (hierarchical) CheckNodes(t, result.placement);
    for (int32_t l = 0; l < t.layers; ++l) {
      const oracle::Loads loads = LayerLoads(request, l);
      const oracle::Ids published =
          hierarchical ? oracle::Rebalance(loads, t.slots(), t.groups, t.nodes(), t.ranks)
                       : oracle::Hierarchical(loads, t.slots(), 1, 1, t.ranks);
      const double theirs = oracle::MaxLoad(loads, published, t.ranks);
      const double ours = MaxLoad(request, result.placement, l);
      ASSERT_LE(ours, theirs * kRounding);
      lighter += ours * kRounding < theirs;
    }
    ASSERT_EQ(Place(request).placement, result.placement);
  }
  EXPECT_GT(lighter, 100);  // the swaps are worth having
}

// Ranks (or domains) that hold an expert.
size_t Spread(const ExpertTopology& t, const ExpertPlacement& placement, int32_t layer,
              int32_t expert, bool domains) {
  std::set<int32_t> places;
  for (int32_t s : placement.Replicas(layer, expert)) {
    const int32_t rank = placement.rank_of(s);
    places.insert(domains ? t.domain_of(rank) : rank);
  }
  return places.size();
}

TEST(ExpertPlacementProperty, ProtectsAsManyExpertsAsSlotsAllow) {
  for (uint64_t seed = 0; seed < 400; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    PlacementRequest request = RandomRequest(rng);
    ExpertTopology& t = request.topology;
    if (t.ranks == 1) continue;
    request.policy = PlacementPolicy::kGlobal;
    request.survive_rank_loss = true;
    if (rng.Chance(0.5)) {
      for (int32_t r = 0; r < t.ranks; ++r) t.domains.push_back(static_cast<int32_t>(r % 2));
    }
    const PlacementResult result = Place(request);
    for (int32_t l = 0; l < t.layers; ++l) {
      int32_t protected_ranks = 0;
      int32_t protected_domains = 0;
      for (int32_t e = 0; e < t.experts; ++e) {
        protected_ranks += Spread(t, result.placement, l, e, false) >= 2;
        protected_domains += Spread(t, result.placement, l, e, true) >= 2;
      }
      const int32_t possible = std::min(t.experts, t.slots() - t.experts);
      EXPECT_EQ(protected_ranks, possible);
      const bool one_domain = t.domains.empty() && t.nodes() == 1;
      EXPECT_EQ(protected_domains, one_domain ? 0 : possible);
    }
  }
}

int32_t Risk(const PlacementResult& result) {
  return 2 * result.on_one_rank + result.on_one_domain;
}

// Loads that drift from step to step, each placement made from the last one.
TEST(ExpertPlacementProperty, FewCopiesAndTheSameBalance) {
  int64_t kept = 0;
  int64_t from_scratch = 0;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    Rng rng(seed);
    PlacementRequest request = RandomRequest(rng);
    request.survive_rank_loss = rng.Chance(0.3);
    request.keep_slack = rng.Chance(0.5) ? 0 : 0.05;
    auto before = std::make_shared<ExpertPlacement>(Place(request).placement);
    for (int step = 0; step < 5; ++step) {
      SCOPED_TRACE(testing::Message() << "seed " << seed << " step " << step);
      for (double& load : request.loads) load = std::floor(load * (0.8 + 0.4 * rng.Uniform()));
      request.previous = nullptr;
      const PlacementResult fresh = Place(request);
      request.previous = before;
      const PlacementResult result = Place(request);
      int32_t copies = 0;
      int32_t fresh_copies = 0;
      for (int32_t r = 0; r < request.topology.ranks; ++r) {
        copies += CountCopies(*before, result.placement, r);
        fresh_copies += CountCopies(*before, fresh.placement, r);
      }
      ASSERT_EQ(copies, result.copies);
      ASSERT_LE(copies, fresh_copies);
      if (request.survive_rank_loss) {
        ASSERT_LE(Risk(result), Risk(fresh));
      }
      for (int32_t l = 0; l < request.topology.layers; ++l) {
        ASSERT_LE(MaxLoad(request, result.placement, l),
                  MaxLoad(request, fresh.placement, l) * (1 + request.keep_slack) * kRounding);
      }
      kept += copies;
      from_scratch += fresh_copies;
      before = std::make_shared<ExpertPlacement>(result.placement);
    }
  }
  RecordProperty("copies", std::to_string(kept) + " instead of " + std::to_string(from_scratch));
  EXPECT_LT(kept * 2, from_scratch);
}

TEST(ExpertPlacementProperty, DeadRanksCountForNothing) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    PlacementRequest request = RandomRequest(rng);
    const ExpertTopology& t = request.topology;
    const auto before = std::make_shared<ExpertPlacement>(Place(request).placement);
    const int32_t dead = static_cast<int32_t>(rng.Below(t.ranks));
    if ((t.ranks - 1) * t.slots_per_rank < t.experts) continue;
    request.live.assign(t.ranks, true);
    request.live[dead] = false;
    request.previous = before;
    request.survive_rank_loss = rng.Chance(0.5);
    const PlacementResult result = Place(request);
    EXPECT_EQ(CountCopies(*before, result.placement, dead), 0);
    for (int32_t l = 0; l < t.layers; ++l) {
      std::set<int32_t> covered;
      for (int32_t s = 0; s < t.slots(); ++s) {
        if (s / t.slots_per_rank != dead) covered.insert(result.placement.Slots(l)[s]);
      }
      EXPECT_EQ(static_cast<int32_t>(covered.size()), t.experts);
    }
  }
}

}  // namespace
}  // namespace baton::scheduler
