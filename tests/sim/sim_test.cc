// The cluster in simulated time, several seeds, every kind of fault. A failing case names its seed
// in the test's own name: rerun it with --gtest_filter.

#include "gtest/gtest.h"
#include "tests/sim/simulation.h"

namespace baton::sim {
namespace {

int Ended(const SimulationResult& result, absl::StatusCode code) {
  const auto it = result.ended.find(code);
  return it == result.ended.end() ? 0 : it->second;
}

class SimSeedTest : public testing::TestWithParam<uint64_t> {};

TEST_P(SimSeedTest, EveryRequestEndsOnceWithRightTokensOrACleanError) {
  const SimulationResult result = RunSimulation(Hostile(GetParam(), 500));
  SCOPED_TRACE(result.Summary());
  EXPECT_TRUE(result.problems.empty());
  EXPECT_EQ(result.counts.token_conflicts, 0u);
  // The faults are many and some seeds overload the cluster, yet it serves.
  EXPECT_GT(Ended(result, absl::StatusCode::kOk), 100);
}

INSTANTIATE_TEST_SUITE_P(Seeds, SimSeedTest, testing::Range<uint64_t>(1, 9));

TEST(SimTest, WithoutFaultsEveryRequestIsServed) {
  SimulationOptions options = Hostile(3, 400);
  options.mean_fault_gap = Duration();
  options.cancel_chance = 0;
  options.short_deadline_chance = 0;
  options.cluster.transport = TransportFaults();
  options.cluster.pass_failure = 0;
  options.cluster.slice_failure = 0;
  options.cluster.router.max_queued = 400;
  const SimulationResult result = RunSimulation(options);
  SCOPED_TRACE(result.Summary());
  EXPECT_TRUE(result.problems.empty());
  EXPECT_EQ(Ended(result, absl::StatusCode::kOk), 400);
  EXPECT_EQ(result.counts.retries, 0u);
  EXPECT_EQ(result.counts.release_timeouts, 0u);
}

// Every message in fifty is lost, damaged, doubled or held back; the workers are sound.
TEST(SimTest, TwoHundredSeedsOfHandoffFaults) {
  SimulationResult sum;
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    SimulationOptions options = Hostile(seed, 30);
    options.mean_fault_gap = Duration();
    options.cancel_chance = 0;
    options.short_deadline_chance = 0;
    options.cluster.pass_failure = 0;
    options.cluster.slice_failure = 0;
    options.cluster.transport.drop = 0.005;
    options.cluster.transport.corrupt_payload = 0.005;
    options.cluster.transport.corrupt_header = 0.005;
    options.cluster.transport.duplicate = 0.005;
    options.cluster.transport.hold_back = 0.005;
    options.cluster.transport.cut = 0.001;
    const SimulationResult result = RunSimulation(options);
    ASSERT_TRUE(result.problems.empty()) << "seed " << seed << ": " << result.Summary();
    EXPECT_EQ(Ended(result, absl::StatusCode::kOk), 30) << "seed " << seed << result.Summary();
    sum.counts.landing.bad_checksum += result.counts.landing.bad_checksum;
    sum.counts.landing.unknown_epoch += result.counts.landing.unknown_epoch;
    sum.counts.landing.duplicate += result.counts.landing.duplicate;
    sum.counts.retries += result.counts.retries;
  }
  EXPECT_GT(sum.counts.landing.bad_checksum, 100u);
  EXPECT_GT(sum.counts.landing.unknown_epoch, 100u);
  EXPECT_GT(sum.counts.landing.duplicate, 20u);
  EXPECT_GT(sum.counts.retries, 200u);
}

// Whatever phase it meets, a cancel frees the pages of both workers within two seconds.
TEST(SimTest, CancelledRequestsFreeEverythingInTime) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    SimulationOptions options = Hostile(seed, 100);
    options.cancel_chance = 1;
    options.short_deadline_chance = 0;
    options.mean_fault_gap = Duration();
    options.cluster.transport = TransportFaults();
    options.cluster.pass_failure = 0;
    options.cluster.slice_failure = 0;
    options.cluster.router.release_timeout = Duration::Millis(2'000);
    options.cluster.decode.release_timeout = Duration::Millis(2'000);
    const SimulationResult result = RunSimulation(options);
    EXPECT_TRUE(result.problems.empty()) << "seed " << seed << ": " << result.Summary();
    EXPECT_EQ(result.counts.release_timeouts, 0u) << "seed " << seed;
    EXPECT_GT(Ended(result, absl::StatusCode::kCancelled), 10) << "seed " << seed;
  }
}

TEST(SimTest, SameSeedSameTrace) {
  const SimulationResult first = RunSimulation(Hostile(5, 200));
  const SimulationResult second = RunSimulation(Hostile(5, 200));
  EXPECT_EQ(first.Summary(), second.Summary());
  const SimulationResult other = RunSimulation(Hostile(6, 200));
  EXPECT_NE(first.trace, other.trace);
}

}  // namespace
}  // namespace baton::sim
