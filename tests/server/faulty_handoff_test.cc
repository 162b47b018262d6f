// Two hundred seeds of faults between prefill and decode: messages dropped, delayed, overtaken,
// doubled, damaged, transfers cut. Every request ends with exactly the right tokens or with a clean
// error, and no page is left behind.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>

#include "base/random.h"
#include "base/thread.h"
#include "tests/server/stub_cluster.h"
#include "transport/faulty/faulty_transport.h"

namespace baton::server {
namespace {

using ::testing::ElementsAreArray;

constexpr int kSeeds = 200;
constexpr int kRequests = 4;

EmbeddedParts FaultyParts(uint64_t seed, Gate& prefill, Gate& decode) {
  EmbeddedParts parts = StubParts(prefill, decode);
  Rng rng(seed);
  transport::FaultyOptions options;
  options.seed = seed;
  // From rare to frequent, every kind in most runs.
  const double scale = 0.1 * rng.Uniform();
  for (double* rate :
       {&options.rates.drop, &options.rates.delay, &options.rates.reorder, &options.rates.duplicate,
        &options.rates.corrupt_payload, &options.rates.corrupt_header, &options.rates.truncate,
        &options.rates.cut}) {
    *rate = scale * rng.Uniform();
  }
  parts.prefill_ranks[0].transport = std::make_unique<transport::FaultyTransport>(
      std::move(parts.prefill_ranks[0].transport), options);
  parts.prefill.planner.handoff_timeout = Duration::Millis(30);
  parts.decode.planner.handoff_timeout = Duration::Millis(30);
  return parts;
}

TEST(FaultyHandoff, RightTokensOrACleanErrorAndNoPageLeaks) {
  std::atomic<int> right{0}, failed{0};
  double harmed = 0;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    SCOPED_TRACE(seed);
    Gate prefill, decode;
    StubCluster cluster(FaultyParts(seed, prefill, decode));
    {
      std::vector<Thread> clients;
      for (int i = 0; i < kRequests; ++i) {
        clients.emplace_back("client", [&, i] {
          std::vector<TokenId> prompt(static_cast<size_t>(20 + 50 * i), 1 + i);
          const v1::GenerateRequest request = IdRequest(prompt, 10, seed);
          const Streamed out = Generate(cluster.stub(), request);
          if (out.status.ok()) {
            EXPECT_THAT(out.ids, ElementsAreArray(Expected(request).tokens));
            ++right;
          } else {
            EXPECT_EQ(out.status.error_code(), grpc::StatusCode::UNAVAILABLE)
                << out.status.error_message();
            ++failed;
          }
        });
      }
    }
    ASSERT_TRUE(cluster.WaitForMetric("baton_kv_pages_used{role=\"decode\"}", 0));
    ASSERT_TRUE(cluster.WaitForMetric("baton_kv_pages_used{role=\"prefill\"}", 0));
    harmed += cluster.Metric("baton_retries_total{cause=\"handoff\"}");
  }
  EXPECT_EQ(right + failed, kSeeds * kRequests);
  // The faults were felt, and mostly healed.
  EXPECT_GT(harmed, kSeeds / 2);
  EXPECT_GT(right.load(), failed.load());
}

}  // namespace
}  // namespace baton::server
