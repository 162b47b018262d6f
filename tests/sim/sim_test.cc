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

// With room to keep them, most of what conversations repeat is neither computed nor shipped again;
// with the caches off, all of it is. The tokens are right either way.
TEST(SimTest, WhatConversationsRepeatIsCached) {
  for (const bool caches : {true, false}) {
    SimulationOptions options;
    options.seed = 11;
    options.requests = 400;
    options.shared_chance = 0.8;
    options.mean_gap = Duration::Millis(2);
    options.cluster.prefill_pages = options.cluster.decode_pages = 400;
    options.cluster.prefill.prefix_cache = options.cluster.decode.prefix_cache = caches;
    const SimulationResult result = RunSimulation(options);
    SCOPED_TRACE(result.Summary());
    EXPECT_TRUE(result.problems.empty());
    EXPECT_EQ(Ended(result, absl::StatusCode::kOk), 400);
    const ClusterCounts& counts = result.counts;
    EXPECT_EQ(counts.retries + counts.refusals, 0u);
    if (caches) {
      EXPECT_GT(counts.prefill_hit_tokens, counts.prefill_lookup_tokens / 4);
      EXPECT_GT(counts.decode_hit_tokens, counts.decode_lookup_tokens / 4);
    } else {
      EXPECT_EQ(counts.prefill_hit_tokens + counts.decode_hit_tokens + counts.evicted_pages, 0u);
    }
  }
}

// Whoever shares a prefix is drawn to the worker that has it, but nobody waits for long because of
// it, nor do the other workers stand idle.
TEST(SimTest, OnePopularPrefixStarvesNobody) {
  SimulationOptions options;
  options.seed = 12;
  options.requests = 600;
  options.shared_chance = 1;
  options.mean_gap = Duration::Micros(400);
  options.deadline = Duration::Seconds(5);  // of simulated time
  options.cluster.router.max_queued = 600;
  const SimulationResult result = RunSimulation(options);
  SCOPED_TRACE(result.Summary());
  EXPECT_TRUE(result.problems.empty());
  EXPECT_EQ(Ended(result, absl::StatusCode::kOk), 600);
  EXPECT_GT(result.counts.prefill_hit_tokens, 0u);
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
