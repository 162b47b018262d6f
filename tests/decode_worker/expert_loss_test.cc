// Ranks of a group that die, fall silent and come back: the others go on with every bit where the
// experts are covered, and leave service where they are not.

#include <memory>
#include <string>

#include "base/random.h"
#include "decode_worker/expert_group.h"
#include "gtest/gtest.h"
#include "tests/decode_worker/expert_cluster.h"
#include "tests/sanitized.h"

namespace baton::decode_worker {
namespace {

// Every expert twice, on two ranks.
ExpertCluster::Options Covered(int32_t ranks) { return ExpertCluster::Covered(ranks, 16); }

void AwaitGroup(ExpertCluster& cluster, int32_t ranks) {
  for (int32_t r = 0; r < ranks; ++r) {
    cluster.Await("the group", [&] { return cluster.view(r) != nullptr; });
  }
}

void AwaitMasked(ExpertCluster& cluster, int32_t seen_by, size_t rank, bool masked) {
  cluster.Await(masked ? "the rank to be masked" : "the rank to be taken in", [&] {
    const auto view = cluster.view(seen_by);
    return view != nullptr && view->active.live[rank] == !masked;
  });
}

TEST(ExpertLossTest, OthersGoOnWithoutARankAndTakeItBackIn) {
  ExpertCluster cluster(Covered(3));
  AwaitGroup(cluster, 3);
  EXPECT_EQ(cluster.view(0)->on_one_rank, 0);
  cluster.AwaitPasses(3);
  cluster.KillInPass({2});
  AwaitMasked(cluster, 0, 2, true);
  AwaitMasked(cluster, 1, 2, true);
  cluster.AwaitPasses(20);
  EXPECT_EQ(cluster.view(0)->uncovered, 0);
  EXPECT_FALSE(cluster.view(0)->present[2]);
  EXPECT_EQ(cluster.report(0).lost, 1u);

  cluster.Restart(2);
  for (int32_t r = 0; r < 3; ++r) AwaitMasked(cluster, r, 2, false);
  cluster.AwaitPasses(20);
  cluster.Await("the leader to know", [&] { return cluster.report(0).restored == 1; });
  for (int32_t r = 0; r < 3; ++r) EXPECT_TRUE(cluster.health(r).ok()) << cluster.health(r);
}

TEST(ExpertLossTest, AnotherRankTakesTheLead) {
  ExpertCluster cluster(Covered(3));
  AwaitGroup(cluster, 3);
  cluster.AwaitPasses(3);
  cluster.Kill(0);
  AwaitMasked(cluster, 1, 0, true);
  AwaitMasked(cluster, 2, 0, true);
  EXPECT_EQ(cluster.view(2)->leader, 1);
  cluster.AwaitPasses(10);
  cluster.Restart(0);
  for (int32_t r = 0; r < 3; ++r) AwaitMasked(cluster, r, 0, false);
  EXPECT_EQ(cluster.view(0)->leader, 1);
  cluster.Await("the leader to know", [&] { return cluster.report(1).restored == 1; });
  cluster.AwaitPasses(10);
}

TEST(ExpertLossTest, TheGroupStopsWhereExpertsAreLost) {
  ExpertCluster::Options options = Covered(3);
  options.redundant_experts = 0;
  options.group.rebalance.survive_rank_loss = false;
  ExpertCluster cluster(options);
  AwaitGroup(cluster, 3);
  cluster.AwaitPasses(3);
  cluster.Kill(1);
  for (const int32_t r : {0, 2}) {
    cluster.Await("the end", [&] { return !cluster.health(r).ok(); });
    EXPECT_EQ(cluster.health(r).code(), absl::StatusCode::kUnavailable);
    EXPECT_NE(cluster.health(r).message().find("have no replica"), absl::string_view::npos)
        << cluster.health(r);
  }
}

TEST(ExpertLossTest, ARankThatCannotComputeLeaves) {
  ExpertCluster cluster(Covered(3));
  AwaitGroup(cluster, 3);
  cluster.AwaitPasses(3);
  cluster.runner(1).FailPasses();
  cluster.Await("the end", [&] { return !cluster.health(1).ok(); });
  EXPECT_EQ(cluster.health(1).message(), "a machine at fault");
  AwaitMasked(cluster, 0, 1, true);
  AwaitMasked(cluster, 2, 1, true);
  cluster.AwaitPasses(10);
  EXPECT_TRUE(cluster.health(0).ok() && cluster.health(2).ok());
}

// As a process that is stopped and goes on later: the others have done without it by then.
TEST(ExpertLossTest, ASilentRankIsFenced) {
  ExpertCluster::Options options = Covered(3);
  options.group.timeout = Duration::Millis(300 * kSanitizedTestScale);
  ExpertCluster cluster(options);
  AwaitGroup(cluster, 3);
  cluster.runner(2).HoldPasses(true);
  AwaitMasked(cluster, 0, 2, true);
  AwaitMasked(cluster, 1, 2, true);
  cluster.runner(2).HoldPasses(false);
  cluster.Await("the end", [&] { return !cluster.health(2).ok(); });
  cluster.AwaitPasses(10);
  EXPECT_TRUE(cluster.health(0).ok() && cluster.health(1).ok());
}

// Whatever the experts are doing when a rank dies.
TEST(ExpertLossTest, RanksComeAndGoWhileExpertsMove) {
  ExpertCluster::Options options = Covered(4);
  options.redundant_experts = 32;
  options.group.half_life_steps = 1;
  options.group.rebalance.automatic = true;
  options.group.rebalance.interval = Duration::Millis(1);
  options.group.rebalance.restore_retry = Duration::Millis(1);
  options.group.rebalance.min_gain = 0.01;
  options.group.rebalance.max_staged = 2;
  options.group.rebalance.keep_slack = 0;
  ExpertCluster cluster(options);
  AwaitGroup(cluster, 4);
  Rng rng(7);
  for (int round = 0; round < 6; ++round) {
    const int32_t victim = static_cast<int32_t>(rng.Below(4));
    const int32_t other = (victim + 1) % 4;
    SCOPED_TRACE(testing::Message() << "round " << round << ", rank " << victim);
    cluster.AwaitPasses(static_cast<int64_t>(rng.Below(12)));
    if (rng.Chance(0.5)) {
      cluster.Kill(victim);
    } else {
      cluster.KillInPass({victim});
    }
    AwaitMasked(cluster, other, static_cast<size_t>(victim), true);
    cluster.AwaitPasses(static_cast<int64_t>(rng.Below(12)));
    cluster.Restart(victim);
    for (int32_t r = 0; r < 4; ++r) {
      AwaitMasked(cluster, r, static_cast<size_t>(victim), false);
      EXPECT_TRUE(cluster.health(r).ok()) << cluster.health(r);
    }
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace baton::decode_worker
