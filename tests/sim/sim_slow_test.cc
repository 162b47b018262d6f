// 10,000 requests over four prefill workers and four decode ranks, with every kind of fault, all
// invariants checked in every tick.

#include <cstdio>

#include "gtest/gtest.h"
#include "tests/sim/simulation.h"

namespace baton::sim {
namespace {

TEST(SimSlowTest, TenThousandRequestsUnderFaults) {
  const SimulationResult result = RunSimulation(Hostile(2029, 10'000));
  std::printf("%s\n", result.Summary().c_str());
  SCOPED_TRACE(result.Summary());
  EXPECT_TRUE(result.problems.empty());
  EXPECT_EQ(result.counts.token_conflicts, 0u);
  EXPECT_EQ(result.refused_at_door, 0);
  EXPECT_GT(result.ended.at(absl::StatusCode::kOk), 10'000 * 6 / 10);
  // The run met what it is for.
  EXPECT_GT(result.counts.retries, 100u);
  EXPECT_GT(result.counts.refusals, 10u);
  EXPECT_GT(result.counts.preemptions, 10u);
  EXPECT_GT(result.counts.handoff_timeouts, 10u);
  EXPECT_GT(result.counts.landing.bad_checksum, 10u);
  EXPECT_GT(result.counts.landing.unknown_epoch, 10u);
  EXPECT_GT(result.counts.landing.duplicate, 10u);
}

}  // namespace
}  // namespace baton::sim
