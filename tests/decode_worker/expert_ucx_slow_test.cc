// Groups of ranks that talk over UCX, as processes do: experts move, a rank dies and comes back.

#include <memory>
#include <vector>

#include "decode_worker/expert_group.h"
#include "gtest/gtest.h"
#include "tests/decode_worker/expert_cluster.h"
#include "tests/decode_worker/expert_deaths.h"

namespace baton::decode_worker {
namespace {

const transport::GroupParam kUcx{
    "ucx", [] { return std::make_unique<transport::UcxGroupFabric>("sysv,tcp"); }};
INSTANTIATE_TEST_SUITE_P(Ucx, ExpertDeathsTest, testing::Values(kUcx), FabricName);

TEST(ExpertUcxTest, ExpertsMoveAndRanksComeAndGo) {
  ExpertCluster::Options options;
  options.ranks = 3;
  options.redundant_experts = 20;
  options.group.timeout = Duration::Seconds(20);
  options.group.reform_timeout = Duration::Seconds(20);
  options.group.steps_per_count = 2;
  options.group.half_life_steps = 1;
  options.group.rebalance.survive_rank_loss = true;
  options.group.rebalance.interval = Duration::Millis(1);
  options.group.rebalance.min_gain = 0.01;
  options.group.rebalance.max_staged = 2;
  options.group.rebalance.keep_slack = 0;
  ExpertCluster cluster(options, std::make_unique<transport::UcxGroupFabric>("sysv,tcp"));
  cluster.Await("placements that change", [&] { return cluster.report(0).copies > 0; });
  for (const int32_t victim : {2, 0}) {
    SCOPED_TRACE(victim);
    const auto masked = [&](int32_t seen_by) {
      const auto view = cluster.view(seen_by);
      return view == nullptr || !view->active.live[static_cast<size_t>(victim)];
    };
    cluster.AwaitPasses(3);
    cluster.KillInPass({victim});
    cluster.Await("the rank to be masked", [&] { return masked(1); });
    cluster.AwaitPasses(5);
    cluster.Restart(victim);
    for (int32_t r = 0; r < options.ranks; ++r) {
      cluster.Await("the rank to be taken in", [&] { return !masked(r); });
      EXPECT_TRUE(cluster.health(r).ok()) << cluster.health(r);
    }
  }
  cluster.AwaitPasses(5);
}

}  // namespace
}  // namespace baton::decode_worker
