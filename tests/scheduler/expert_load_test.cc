#include "scheduler/expert_load.h"

#include <cmath>
#include <limits>
#include <vector>

#include "base/random.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace baton::scheduler {
namespace {

using ::testing::DoubleNear;
using ::testing::ElementsAre;

ExpertPlacement Placement(int32_t layers, int32_t experts, int32_t ranks, int32_t slots_per_rank,
                          std::vector<int32_t> slots) {
  ExpertTopology topology;
  topology.layers = layers;
  topology.experts = experts;
  topology.ranks = ranks;
  topology.slots_per_rank = slots_per_rank;
  const auto placement = ExpertPlacement::FromSlots(topology, std::move(slots));
  EXPECT_TRUE(placement.ok()) << placement.status();
  return *placement;
}

TEST(ExpertLoad, HalvesInAHalfLife) {
  ExpertLoad load(2, 3, 10);
  load.Add(0, std::vector<int32_t>{8, 0, 4});
  load.Add(1, std::vector<int32_t>{0, 16, 0});
  load.Add(1, std::vector<int32_t>{0, 0, 2});  // another rank's counts of the same step
  EXPECT_THAT(load.Loads(), ElementsAre(8, 0, 4, 0, 16, 2));
  for (int step = 0; step < 10; ++step) load.Advance();
  EXPECT_THAT(load.Loads(),
              testing::Pointwise(testing::DoubleNear(1e-12), {4.0, 0.0, 2.0, 0.0, 8.0, 1.0}));
  load.Add(0, std::vector<int32_t>{1, 1, 1});
  EXPECT_THAT(load.LayerTokens(0), DoubleNear(9, 1e-12));
  load.Advance(20);
  EXPECT_THAT(load.LayerTokens(1), DoubleNear(2.25, 1e-12));
}

TEST(ExpertLoad, NeverOverflowsNorForgetsTheNewest) {
  Rng rng(7);
  for (const double half_life : {0.25, 3.0, 1000.0}) {
    ExpertLoad load(1, 1, half_life);
    const double decay = std::exp2(-1 / half_life);
    double expected = 0;
    for (int step = 0; step < 5000; ++step) {
      const int32_t tokens = static_cast<int32_t>(rng.Below(100));
      load.Add(0, std::vector<int32_t>{tokens});
      expected += tokens;
      ASSERT_NEAR(load.Loads()[0], expected, expected * 1e-9) << "step " << step;
      const int64_t steps = static_cast<int64_t>(rng.Below(4));
      load.Advance(steps);
      expected *= std::pow(decay, static_cast<double>(steps));
    }
    load.Advance(int64_t{1} << 40);
    EXPECT_LT(load.Loads()[0], 1e-6);
    load.Add(0, std::vector<int32_t>{3});
    EXPECT_NEAR(load.Loads()[0], 3, 1e-6);
  }
}

TEST(ExpertLoad, NeverForgetsWithAnInfiniteHalfLife) {
  ExpertLoad load(1, 2, std::numeric_limits<double>::infinity());
  for (int step = 0; step < 100; ++step) {
    load.Add(0, std::vector<int32_t>{1, 2});
    load.Advance();
  }
  EXPECT_THAT(load.Loads(), ElementsAre(100, 200));
}

TEST(ExpertLoad, RanksShareAnExpertEvenly) {
  // Rank 0: experts 0, 1; rank 1: experts 0, 2; rank 2: experts 2, 2.
  const ExpertPlacement p = Placement(1, 3, 3, 2, {0, 1, 0, 2, 2, 2});
  const std::vector<double> loads = {10, 3, 6};
  EXPECT_THAT(RankLoads(p, loads, {}), ElementsAre(8, 7, 4));
  EXPECT_DOUBLE_EQ(Balancedness(p, loads, {}), 19.0 / 3 / 8);
  // Without rank 1, rank 0 has all of expert 0 and rank 2 all of expert 2.
  EXPECT_THAT(RankLoads(p, loads, {true, false, true}), ElementsAre(13, 0, 6));
  EXPECT_DOUBLE_EQ(Balancedness(p, loads, {true, false, true}), 9.5 / 13);
  // Without rank 0, expert 1 is nobody's load.
  EXPECT_THAT(RankLoads(p, loads, {false, true, true}), ElementsAre(0, 12, 4));
}

TEST(ExpertLoad, LayersAddUpTheirSlowestRanks) {
  const ExpertPlacement even = Placement(2, 2, 2, 1, {0, 1, 0, 1});
  const std::vector<double> loads = {10, 30, 5, 5};
  EXPECT_THAT(LayerBalancedness(even, loads, {}), ElementsAre(20.0 / 30, 1));
  EXPECT_DOUBLE_EQ(Balancedness(even, loads, {}), 25.0 / 35);
  EXPECT_DOUBLE_EQ(Balancedness(even, std::vector<double>(4), {}), 1);
}

TEST(ExpertLoad, PredictsTheTimeThatAPlacementSaves) {
  const ExpertPlacement bad = Placement(1, 4, 2, 2, {0, 1, 2, 3});
  const ExpertPlacement good = Placement(1, 4, 2, 2, {0, 2, 1, 3});
  const std::vector<double> loads = {10, 10, 2, 2};
  EXPECT_DOUBLE_EQ(PredictedGain(bad, good, loads, {}), 0.4);
  EXPECT_DOUBLE_EQ(PredictedGain(good, bad, loads, {}), 1 - 20.0 / 12);
  EXPECT_DOUBLE_EQ(PredictedGain(bad, good, std::vector<double>(4), {}), 0);
}

}  // namespace
}  // namespace baton::scheduler
