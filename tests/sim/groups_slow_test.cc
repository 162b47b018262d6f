// The shipped router, planners, loops and placement at the size of DeepSeek's published deployment:
// 64 prefill workers and 320 decode ranks, in ten groups or as a single one, under load and faults.

#include <cstdio>

#include "gtest/gtest.h"
#include "tests/sim/simulation.h"

namespace baton::sim {
namespace {

constexpr int kRequests = 5'000;

SimulationOptions Hundreds(uint64_t seed, int group_ranks) {
  SimulationOptions options = Hostile(seed, kRequests);
  // A few requests on each rank at once.
  options.mean_gap = Duration::Micros(100);
  options.mean_fault_gap = Duration::Millis(10);
  options.cancel_chance = 0.05;
  options.short_deadline_chance = 0.02;
  options.max_tokens = 120;
  ClusterOptions& cluster = options.cluster;
  cluster.prefill_workers = 64;
  cluster.decode_ranks = 320;
  cluster.decode_pages = 64;
  cluster.prefill_pages = 96;
  cluster.router.max_queued = kRequests;
  cluster.check_every = 128;  // the router's alone walks over thousands of requests
  options.groups.ranks = group_ranks;
  ExpertGroupOptions& experts = options.groups.experts;
  experts.lost_message = 0.002;
  experts.failed_copy = 0.0005;
  if (group_ranks ==
      320) {  // one group: as many slots as every expert on two ranks needs, and more
    experts.experts = 256;
    experts.slots_per_rank = 2;
    experts.top_k = 8;
  }
  return options;
}

void ExpectServed(const SimulationResult& result) {
  std::printf("%s\n", result.Summary().c_str());
  EXPECT_TRUE(result.problems.empty());
  EXPECT_EQ(result.counts.token_conflicts, 0u);
  EXPECT_EQ(result.refused_at_door, 0);
  EXPECT_GT(result.ended.at(absl::StatusCode::kOk), kRequests * 85 / 100);
  // The run met what it is for.
  EXPECT_GT(result.counts.retries, 20u);
  EXPECT_GT(result.experts.restored, 3);
  EXPECT_GT(result.experts.masked_steps, 50);
}

TEST(SimGroupsSlowTest, TenGroupsOf32) {
  const SimulationResult result = RunSimulation(Hundreds(31, 32));
  SCOPED_TRACE("seed 31");
  ExpectServed(result);
  EXPECT_GT(result.experts.installed, 20);
}

TEST(SimGroupsSlowTest, OneGroupOf320) {
  const SimulationResult result = RunSimulation(Hundreds(320, 320));
  SCOPED_TRACE("seed 320");
  ExpectServed(result);
  // Ranks are lost faster than so large a group can copy: rebalances begin, and are rolled back.
  EXPECT_GT(result.experts.rolled_back, 0);
}

}  // namespace
}  // namespace baton::sim
