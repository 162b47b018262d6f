// The prefix cache in real processes with a real model: an answer is the same whether its prompt
// was computed as a whole, in part, or all but its last tokens, and usage and metrics say which it
// was.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/random.h"
#include "tests/e2e/cluster.h"

namespace baton::e2e {
namespace {

constexpr int kPageTokens = 64;  // of the default configuration

int WholePages(int prompt_tokens) { return (prompt_tokens - 1) / kPageTokens * kPageTokens; }

server::ClientResult Generate(server::CompletionClient& client, const std::vector<TokenId>& prompt,
                              float temperature = 0, const std::string& salt = "") {
  server::ClientRequest request;
  request.token_ids = prompt;
  request.temperature = temperature;
  request.seed = 7;
  request.max_tokens = 70;
  request.ignore_eos = true;
  request.cache_salt = salt;
  const absl::StatusOr<server::ClientResult> result = client.Generate(
      request, [](const std::string&, const std::vector<TokenId>&) { return true; });
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? *result : server::ClientResult();
}

// Ids and not text: an answer's text may be split into other tokens than those that were generated.
std::vector<TokenId> Prompt(int tokens) {
  Rng rng(1);
  std::vector<TokenId> prompt;
  for (int i = 0; i < tokens; ++i) prompt.push_back(static_cast<TokenId>(10 + rng.Below(500)));
  return prompt;
}

// What a client sends next: the conversation so far, and a few tokens more.
std::vector<TokenId> NextTurn(std::vector<TokenId> prompt, const std::vector<TokenId>& answer) {
  prompt.insert(prompt.end(), answer.begin(), answer.end());
  prompt.insert(prompt.end(), {11, 12, 13});
  return prompt;
}

TEST(PrefixCache, ColdWarmAndNextTurnGiveTheSameTokens) {
  // Two prefill workers: the router finds the one that has the prefix. A third process group
  // without caches says what the tokens are.
  Cluster cluster({.prefill_workers = 2, .prefill_flags = {"--prefill.chunk_tokens=100"}});
  Cluster plain({.prefill_flags = {"--prefill.prefix_cache=false"},
                 .decode_flags = {"--decode.prefix_cache=false"}});
  ASSERT_TRUE(cluster.WaitUntilReady()) << cluster.router().Log();
  ASSERT_TRUE(plain.WaitUntilReady()) << plain.router().Log();
  const auto client = cluster.Connect();
  const auto oracle = plain.Connect();

  const std::vector<TokenId> first = Prompt(250);
  for (const float temperature : {0.0f, 0.9f}) {
    SCOPED_TRACE(temperature);
    const server::ClientResult expected = Generate(*oracle, first, temperature);
    EXPECT_EQ(expected.cached_tokens, 0);
    ASSERT_GT(expected.prompt_tokens, 2 * kPageTokens);
    for (int round = 0; round < 3; ++round) {
      const server::ClientResult result = Generate(*client, first, temperature);
      EXPECT_EQ(result.token_ids, expected.token_ids);
      const bool cold = temperature == 0 && round == 0;
      EXPECT_EQ(result.cached_tokens, cold ? 0 : WholePages(expected.prompt_tokens));
    }
    // The next turn begins with prompt and answer; prompt form is what is reused.
    const std::vector<TokenId> second = NextTurn(first, expected.token_ids);
    const server::ClientResult expected_second = Generate(*oracle, second, temperature);
    const server::ClientResult turn = Generate(*client, second, temperature);
    EXPECT_EQ(turn.token_ids, expected_second.token_ids);
    EXPECT_GE(turn.cached_tokens, WholePages(expected.prompt_tokens));
  }

  const server::ClientResult salted = Generate(*client, first, 0, "tenant");
  EXPECT_EQ(salted.cached_tokens, 0);
  EXPECT_EQ(salted.token_ids, Generate(*oracle, first).token_ids);

  const double looked_up =
      Metric(cluster.decode(), "baton_prefix_cache_lookup_tokens_total{role=\"decode\"}");
  EXPECT_GT(Metric(cluster.decode(), "baton_prefix_cache_hit_tokens_total{role=\"decode\"}"),
            looked_up / 2);
  EXPECT_TRUE(Eventually(10, [&] {
    return cluster.DecodePages() + cluster.PrefillPages(0) + cluster.PrefillPages(1) == 0;
  }));
}

// Only when asked for, and then the answer says so.
TEST(PrefixCache, GeneratedTokensAreReusedOnRequestAndMarked) {
  Cluster cluster({.decode_flags = {"--reuse-generated"}});
  ASSERT_TRUE(cluster.WaitUntilReady()) << cluster.router().Log();
  const auto client = cluster.Connect();
  const std::vector<TokenId> first = Prompt(150);
  const server::ClientResult answer = Generate(*client, first);
  EXPECT_EQ(answer.decode_form_tokens, 0);
  const server::ClientResult turn = Generate(*client, NextTurn(first, answer.token_ids));
  EXPECT_GE(turn.decode_form_tokens, kPageTokens);
  EXPECT_GT(Metric(cluster.decode(), "baton_prefix_cache_generated_tokens_total"), 0);
}

}  // namespace
}  // namespace baton::e2e
