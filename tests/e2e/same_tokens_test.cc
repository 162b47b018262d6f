// Disaggregated = aggregated: `baton generate`, `baton serve` and three processes over UCX give the
// same tokens, greedy and sampled, one after the other and all at once.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <sstream>

#include "base/thread.h"
#include "tests/e2e/cluster.h"

namespace baton::e2e {
namespace {

using ::testing::ElementsAreArray;

std::string Text(double value) {
  std::ostringstream out;
  out << value;
  return out.str();
}

// The tokens without the end-of-sequence token that ends them, which `generate` shows and servers
// keep to themselves.
std::vector<TokenId> Generated(const ScratchDirectory& scratch,
                               const server::ClientRequest& request) {
  int code = 0;
  const std::string out = RunBaton(
      scratch,
      {"generate", std::string("--model=") + kModel, "--ids",
       "--max-tokens=" + std::to_string(*request.max_tokens),
       "--temperature=" + Text(*request.temperature), "--top-p=" + Text(request.top_p.value_or(1)),
       "--top-k=" + Text(request.top_k.value_or(0)), "--seed=" + std::to_string(*request.seed),
       request.text},
      &code);
  EXPECT_EQ(code, 0);
  std::istringstream words(out);
  std::vector<TokenId> ids;
  for (TokenId id = 0; words >> id;) ids.push_back(id);
  EXPECT_FALSE(ids.empty());
  return ids;
}

void ExpectSame(server::CompletionClient& client, const server::ClientRequest& request,
                std::vector<TokenId> generated) {
  const absl::StatusOr<server::ClientResult> result = client.Generate(
      request, [](const std::string&, const std::vector<TokenId>&) { return true; });
  ASSERT_TRUE(result.ok()) << result.status();
  if (result->finish == "stop") generated.pop_back();
  EXPECT_THAT(result->token_ids, ElementsAreArray(generated));
}

TEST(SameTokens, GenerateServeAndThreeProcesses) {
  const ScratchDirectory scratch;
  const std::vector<server::ClientRequest> requests = SampleRequests();
  std::vector<std::vector<TokenId>> expected;
  for (const server::ClientRequest& request : requests) {
    expected.push_back(Generated(scratch, request));
  }

  BatonProcess serve(
      scratch, "serve",
      {"serve", std::string("--model=") + kModel, "--port=127.0.0.1:0", "--http-port=127.0.0.1:0",
       "--prefill.memory_mb=64", "--decode.memory_mb=128"});
  Cluster cluster({.prefill_flags = {"--prefill.chunk_tokens=100"}});
  ASSERT_TRUE(serve.WaitForPorts()) << serve.Log();
  ASSERT_TRUE(cluster.WaitUntilReady()) << cluster.router().Log();
  for (const std::string& address : {serve.grpc_address(), cluster.router().grpc_address()}) {
    SCOPED_TRACE(address);
    const auto client = server::ConnectCompletionClient(address);
    for (size_t i = 0; i < requests.size(); ++i) ExpectSame(*client, requests[i], expected[i]);
    // All at once: batched with each other, in chunks that others share.
    std::vector<Thread> threads;
    for (size_t i = 0; i < requests.size(); ++i) {
      threads.emplace_back("client", [&, i] {
        const auto own = server::ConnectCompletionClient(address);
        ExpectSame(*own, requests[i], expected[i]);
      });
    }
  }
  serve.Signal(SIGTERM);
  EXPECT_EQ(serve.Wait(), 0);
}

}  // namespace
}  // namespace baton::e2e
