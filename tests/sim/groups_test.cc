// Decode ranks in groups that step together, with experts that move while tokens flow: a small
// cluster, several seeds. A failing case names its seed in the test's own name.

#include "gtest/gtest.h"
#include "tests/sim/simulation.h"

namespace baton::sim {
namespace {

SimulationOptions SmallGroups(uint64_t seed) {
  SimulationOptions options = Hostile(seed, 300);
  options.cluster.decode_ranks = 16;
  options.cluster.prefill_workers = 6;
  options.cluster.decode_pages = 40;
  options.cluster.prefill_pages = 96;
  options.cluster.router.max_queued = 300;
  options.mean_gap = Duration::Micros(1'500);
  options.mean_fault_gap = Duration::Millis(30);
  options.groups.ranks = 4;
  options.groups.experts.ranks_per_node = 2;
  options.groups.experts.layers = 2;
  options.groups.experts.experts = 8;
  options.groups.experts.lost_message = 0.02;
  options.groups.experts.failed_copy = 0.01;
  return options;
}

constexpr uint64_t kSeeds = 8;

class SimGroupsTest : public testing::TestWithParam<uint64_t> {
 protected:
  static void TearDownTestSuite() {
    if (runs_ < static_cast<int>(kSeeds)) return;  // a seed that is run again alone
    // Everything that may happen has happened.
    EXPECT_GT(sum_.installed, 10);
    EXPECT_GT(sum_.rolled_back, 0);
    EXPECT_GT(sum_.restored, 10);
    EXPECT_GT(sum_.takeovers, 3);
    EXPECT_GT(sum_.stopped, 1);
    EXPECT_GT(sum_.masked_steps, 100);
  }
  static inline ExpertTotals sum_;
  static inline int runs_ = 0;
};

TEST_P(SimGroupsTest, RanksThatStepTogetherLoseNothing) {
  const SimulationResult result = RunSimulation(SmallGroups(GetParam()));
  SCOPED_TRACE(result.Summary());
  EXPECT_TRUE(result.problems.empty());
  EXPECT_EQ(result.counts.token_conflicts, 0u);
  EXPECT_GT(result.ended.at(absl::StatusCode::kOk), 200);
  EXPECT_GT(result.experts.steps, 100);
  sum_.Add(result.experts);
  ++runs_;
}

INSTANTIATE_TEST_SUITE_P(Seeds, SimGroupsTest, testing::Range<uint64_t>(1, kSeeds + 1));

TEST(SimGroups, SameSeedSameTrace) {
  EXPECT_EQ(RunSimulation(SmallGroups(5)).Summary(), RunSimulation(SmallGroups(5)).Summary());
}

}  // namespace
}  // namespace baton::sim
