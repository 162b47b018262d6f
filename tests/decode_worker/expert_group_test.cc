// Experts that move while tokens flow: every request keeps the bits that one rank gives alone, all
// ranks switch together or not at all, and no pass waits for a copy.

#include <algorithm>
#include <memory>
#include <string>
#include <tuple>

#include "decode_worker/expert_group.h"
#include "gtest/gtest.h"
#include "tests/decode_worker/expert_cluster.h"

namespace baton::decode_worker {
namespace {

using scheduler::RebalanceEnd;

// Loads that forget at once and an interval of nothing: experts move every few steps.
ExpertCluster::Options Restless(int32_t ranks) {
  ExpertCluster::Options options;
  options.ranks = ranks;
  options.group.timeout = Duration::Seconds(20);
  options.group.steps_per_count = 2;
  options.group.half_life_steps = 1;
  options.redundant_experts = 4;
  options.group.rebalance.interval = Duration::Millis(1);
  options.group.rebalance.min_gain = 0.01;
  options.group.rebalance.max_staged = 2;
  options.group.rebalance.keep_slack = 0;
  return options;
}

uint32_t Ended(const ExpertsReport& report, RebalanceEnd end) {
  return report.ended[static_cast<size_t>(end)];
}

using Setup = std::tuple<std::string, int32_t>;
class MovingExpertsTest : public testing::TestWithParam<Setup> {};

TEST_P(MovingExpertsTest, TokensKeepTheirBitsWhileExpertsMove) {
  ExpertCluster::Options options = Restless(std::get<1>(GetParam()));
  options.model = std::get<0>(GetParam());
  options.idle_ranks = options.ranks > 2 ? 1 : 0;
  options.overlap_rows = options.ranks > 2 ? 4 : 0;  // prompts go in two parts, tokens in one
  options.uploads = options.ranks > 2;
  options.group.rebalance.min_gain = 0;  // also where the placement in use suits all loads
  ExpertCluster cluster(options);
  cluster.Await("placements that change", [&] {
    const ExpertsReport report = cluster.report(0);
    return Ended(report, RebalanceEnd::kInstalled) >= 4 && report.copies >= 8 &&
           report.switches >= 6 && cluster.runs(0) >= 3;
  });
  for (int32_t r = 0; r < options.ranks; ++r) {
    EXPECT_TRUE(cluster.health(r).ok()) << cluster.health(r);
    EXPECT_EQ(cluster.report(r).lost, 0u);
  }
}

std::string SetupName(const testing::TestParamInfo<Setup>& info) {
  std::string name = std::get<0>(info.param) + "_ep" + std::to_string(std::get<1>(info.param));
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}
INSTANTIATE_TEST_SUITE_P(Models, MovingExpertsTest,
                         testing::Combine(testing::Values("bf16-groups-mtp", "fp8-ragged-yarn"),
                                          testing::Values(2, 4)),
                         SetupName);

TEST(ExpertGroupTest, NoPassWaitsForACopy) {
  ExpertCluster::Options options = Restless(2);
  options.group.rebalance.automatic = false;
  ExpertCluster cluster(options);
  cluster.runner(1).Hold();
  cluster.Await("loads", [&] { return cluster.view(0) && cluster.view(0)->loads; });
  cluster.Await("a copy", [&] {
    if (cluster.runner(1).waiting() > 0) return true;
    cluster.group(0).RequestRebalance();
    return false;
  });
  cluster.AwaitPasses(50);
  EXPECT_EQ(cluster.runner(1).waiting(), 1);
  const uint64_t before = cluster.view(0)->active.version;
  cluster.runner(1).Release();
  cluster.Await("the switch", [&] {
    return cluster.view(0)->active.version > before && cluster.view(1)->active.version > before;
  });
}

TEST(ExpertGroupTest, ARankThatDoesNotAnswerRollsBack) {
  ExpertCluster::Options options = Restless(2);
  options.group.rebalance.prepare_timeout = Duration::Millis(20);
  ExpertCluster cluster(options);
  cluster.runner(1).Hold();
  cluster.Await("a rollback",
                [&] { return Ended(cluster.report(0), RebalanceEnd::kRolledBack) > 0; });
  EXPECT_NE(cluster.view(0)->last_rebalance.find("rank(s) 1 have not prepared"), std::string::npos)
      << cluster.view(0)->last_rebalance;
  cluster.AwaitPasses(20);
  cluster.runner(1).Release();
  cluster.Await("a placement that all have prepared",
                [&] { return Ended(cluster.report(0), RebalanceEnd::kInstalled) > 0; });
}

TEST(ExpertGroupTest, ACopyThatFailsRollsBack) {
  ExpertCluster::Options options = Restless(2);
  ExpertCluster cluster(options);
  cluster.runner(1).FailCopies(absl::DataLossError("the file was cut"));
  cluster.Await("a rollback", [&] {
    const auto view = cluster.view(0);
    return view != nullptr &&
           view->last_rebalance.find("rank 1 could not prepare") != std::string::npos;
  });
  cluster.AwaitPasses(20);
  cluster.runner(1).Release();
  const uint32_t before = Ended(cluster.report(0), RebalanceEnd::kInstalled);
  cluster.Await("a placement that all have prepared",
                [&] { return Ended(cluster.report(0), RebalanceEnd::kInstalled) > before; });
}

// Nobody has requests: the group sleeps, and still does what it is asked for.
TEST(ExpertGroupTest, AnIdleGroupAnswersRequests) {
  ExpertCluster::Options options = Restless(3);
  options.idle_ranks = 3;
  ExpertCluster cluster(options);
  cluster.Await("the group", [&] { return cluster.view(2) != nullptr; });
  cluster.group(2).RequestRebalance();  // not the leader
  cluster.Await("an answer", [&] { return Ended(cluster.report(0), RebalanceEnd::kRefused) > 0; });
  EXPECT_NE(cluster.view(0)->last_rebalance.find("no expert loads were measured yet"),
            std::string::npos);
}

}  // namespace
}  // namespace baton::decode_worker
