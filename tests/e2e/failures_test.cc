// What happens to requests when processes die, clients leave, or workers do not match.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>

#include "base/thread.h"
#include "tests/e2e/cluster.h"
#include "tests/sanitized.h"

namespace baton::e2e {
namespace {

using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

constexpr double kFreeWithinSeconds = 2;

bool TakeAll(const std::string&, const std::vector<TokenId>&) { return true; }

// Long enough to be caught in the act.
server::ClientRequest Long(int repeats, int32_t max_tokens) {
  server::ClientRequest request;
  for (int i = 0; i < repeats; ++i) request.text += "The files are read in the order given. ";
  request.max_tokens = max_tokens;
  request.temperature = 0.0f;
  request.ignore_eos = true;
  return request;
}

TEST(Failures, AKilledPrefillWorkerCostsNoRequest) {
  // Equal prompts: without a cache each of them takes its time.
  Cluster cluster({.prefill_workers = 2,
                   .prefill_flags = {"--prefill.chunk_tokens=32", "--prefill.prefix_cache=false"}});
  ASSERT_TRUE(cluster.WaitUntilReady()) << cluster.router().Log();
  const server::ClientRequest request = Long(80 / kSanitizedTestScale, 16);
  const absl::StatusOr<server::ClientResult> alone = cluster.Connect()->Generate(request, TakeAll);
  ASSERT_TRUE(alone.ok()) << alone.status();
  std::atomic<int> right{0};
  {
    std::vector<Thread> clients;
    for (int i = 0; i < 8; ++i) {
      clients.emplace_back("client", [&] {
        const absl::StatusOr<server::ClientResult> result =
            cluster.Connect()->Generate(request, TakeAll);
        EXPECT_TRUE(result.ok()) << result.status();
        if (result.ok() && result->token_ids == alone->token_ids) ++right;
      });
    }
    // Both workers are at it when the first dies.
    EXPECT_TRUE(
        Eventually(30, [&] { return cluster.PrefillPages(0) > 0 && cluster.PrefillPages(1) > 0; }));
    cluster.prefill(0).Signal(SIGKILL);
  }
  EXPECT_EQ(right.load(), 8);
  EXPECT_EQ(cluster.prefill(0).Wait(), 128 + SIGKILL);
  EXPECT_TRUE(Eventually(kFreeWithinSeconds, [&] {
    return cluster.PrefillPages(1) == 0 && cluster.DecodePages() == 0;
  }));
}

TEST(Failures, CancelsFreeThePagesOfBothWorkers) {
  Cluster cluster({.prefill_flags = {"--prefill.chunk_tokens=16"}});
  ASSERT_TRUE(cluster.WaitUntilReady()) << cluster.router().Log();
  const auto cancelled_while = [&](const server::ClientRequest& request, auto phase) {
    const auto client = cluster.Connect();
    Thread running("client", [&] { EXPECT_FALSE(client->Generate(request, TakeAll).ok()); });
    EXPECT_TRUE(Eventually(30, phase));
    client->Cancel();
    running.Join();
    EXPECT_TRUE(
        Eventually(kFreeWithinSeconds,
                   [&] { return cluster.PrefillPages(0) == 0 && cluster.DecodePages() == 0; }))
        << "prefill " << cluster.PrefillPages(0) << ", decode " << cluster.DecodePages();
  };
  {
    SCOPED_TRACE("prefilling");
    cancelled_while(Long(150, 8), [&] { return cluster.PrefillPages(0) > 0; });
  }
  {
    SCOPED_TRACE("decoding");
    cancelled_while(Long(2, 1500),
                    [&] { return cluster.PrefillPages(0) == 0 && cluster.DecodePages() > 0; });
  }
}

TEST(Failures, AWorkerOfAnotherModelIsRefused) {
  Cluster cluster({.prefill_model = BATON_SOURCE_DIR "/tests/data/models/fp8-sharded-mtp"});
  EXPECT_TRUE(Eventually(30, [&] {
    return cluster.router().Log().find("model hash is") != std::string::npos;
  })) << cluster.router().Log();
  EXPECT_THAT(HttpGet(cluster.router().http_port(), "/ready"), HasSubstr("prefill="));
  EXPECT_EQ(HttpGet(cluster.router().http_port(), "/health"), "ok\n");
}

TEST(Failures, SigtermLetsRunningRequestsFinish) {
  Cluster cluster({});
  ASSERT_TRUE(cluster.WaitUntilReady()) << cluster.router().Log();
  const server::ClientRequest request = Long(2, 400 / kSanitizedTestScale);
  const absl::StatusOr<server::ClientResult> alone = cluster.Connect()->Generate(request, TakeAll);
  ASSERT_TRUE(alone.ok()) << alone.status();
  ASSERT_TRUE(Eventually(kFreeWithinSeconds, [&] { return cluster.DecodePages() == 0; }));
  Thread running("client", [&] {
    const absl::StatusOr<server::ClientResult> result =
        cluster.Connect()->Generate(request, TakeAll);
    EXPECT_TRUE(result.ok()) << result.status() << "\n"
                             << cluster.router().Log() << cluster.decode().Log()
                             << cluster.prefill(0).Log();
    if (result.ok()) {
      EXPECT_THAT(result->token_ids, ElementsAreArray(alone->token_ids));
    }
  });
  EXPECT_TRUE(Eventually(30, [&] { return cluster.DecodePages() > 0; }));
  // In the order in which a cluster goes down: every process lets what runs finish.
  cluster.router().Signal(SIGTERM);
  EXPECT_TRUE(
      Eventually(10, [&] { return HttpGet(cluster.router().http_port(), "/ready") != "ready\n"; }));
  EXPECT_TRUE(absl::IsUnavailable(cluster.Connect()->Generate(Long(1, 4), TakeAll).status()));
  cluster.decode().Signal(SIGTERM);
  cluster.prefill(0).Signal(SIGTERM);
  running.Join();
  EXPECT_EQ(cluster.router().Wait(), 0) << cluster.router().Log();
  EXPECT_EQ(cluster.decode().Wait(), 0) << cluster.decode().Log();
  EXPECT_EQ(cluster.prefill(0).Wait(), 0) << cluster.prefill(0).Log();
}

TEST(Failures, ASecondSignalEndsAtOnce) {
  const ScratchDirectory scratch;
  BatonProcess serve(
      scratch, "serve",
      {"serve", std::string("--model=") + kModel, "--port=127.0.0.1:0", "--http-port=127.0.0.1:0",
       "--prefill.memory_mb=64", "--decode.memory_mb=128"});
  ASSERT_TRUE(serve.WaitForPorts()) << serve.Log();
  const auto client = server::ConnectCompletionClient(serve.grpc_address());
  Thread running("client", [&] { EXPECT_FALSE(client->Generate(Long(2, 1800), TakeAll).ok()); });
  EXPECT_TRUE(
      Eventually(30, [&] { return Metric(serve, "baton_running_requests{role=\"decode\"}") > 0; }));
  serve.Signal(SIGTERM);
  EXPECT_TRUE(Eventually(10, [&] { return serve.Log().find("draining") != std::string::npos; }));
  serve.Signal(SIGTERM);
  EXPECT_EQ(serve.Wait(), 1) << serve.Log();
}

}  // namespace
}  // namespace baton::e2e
