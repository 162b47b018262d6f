// Workers whose ranks are processes: five of them give the tokens of one, a group that loses a rank
// ends with it and costs no request, and the ranks say what is wrong when they do not fit.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include "tests/e2e/cluster.h"
#include "tests/sanitized.h"

namespace baton::e2e {
namespace {

using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

std::vector<Tokens> OneAfterTheOther(server::CompletionClient& client,
                                     const std::vector<server::ClientRequest>& requests) {
  std::vector<Tokens> tokens;
  for (const server::ClientRequest& request : requests) tokens.push_back(TokensOf(client, request));
  return tokens;
}

void ExpectSame(const std::vector<Tokens>& tokens, const std::vector<Tokens>& expected) {
  for (size_t i = 0; i < expected.size(); ++i) {
    SCOPED_TRACE(i);
    EXPECT_FALSE(tokens[i].empty());
    EXPECT_THAT(tokens[i], ElementsAreArray(expected[i]));
  }
}

// Long enough to be caught in the act, greedy and sampled.
std::vector<server::ClientRequest> LongRequests(int count, int repeats, int32_t max_tokens) {
  std::vector<server::ClientRequest> requests;
  for (int i = 0; i < count; ++i) {
    server::ClientRequest request;
    for (int j = 0; j < repeats; ++j) request.text += "The files are read in the order given. ";
    request.max_tokens = max_tokens;
    request.temperature = i % 2 == 0 ? 0.0f : 0.8f;
    request.seed = static_cast<uint64_t>(i);
    request.ignore_eos = true;
    requests.push_back(request);
  }
  return requests;
}

TEST(Groups, FiveProcessesGiveTheTokensOfOne) {
  const ScratchDirectory scratch;
  BatonProcess serve(
      scratch, "serve",
      {"serve", std::string("--model=") + kModel, "--port=127.0.0.1:0", "--http-port=127.0.0.1:0",
       "--prefill.memory_mb=64", "--decode.memory_mb=128"});
  Cluster cluster({.prefill_ranks = 2,
                   .decode_ranks = 2,
                   .prefill_flags = {"--prefill.chunk_tokens=100"},
                   .decode_flags = {"--decode.redundant_experts=4"}});
  ASSERT_TRUE(serve.WaitForPorts()) << serve.Log();
  ASSERT_TRUE(cluster.WaitUntilReady()) << cluster.router().Log();
  const std::vector<server::ClientRequest> requests = SampleRequests();
  const std::vector<Tokens> expected =
      OneAfterTheOther(*server::ConnectCompletionClient(serve.grpc_address()), requests);
  ExpectSame(OneAfterTheOther(*cluster.Connect(), requests), expected);
  ExpectSame(AllAtOnce(cluster, requests, [] {}), expected);
  EXPECT_EQ(HttpGet(cluster.prefill(0, 1).http_port(), "/health"), "ok\n");
  EXPECT_EQ(HttpGet(cluster.prefill(0, 1).http_port(), "/ready"), "ready\n");

  // Told to end one by one, in the order that is worst for each group.
  cluster.router().Signal(SIGTERM);
  EXPECT_EQ(cluster.router().Wait(), 0) << cluster.router().Log();
  for (const size_t rank : {1, 0}) cluster.prefill(0, rank).Signal(SIGTERM);
  for (const size_t rank : {0, 1}) cluster.decode(0, rank).Signal(SIGTERM);
  for (const size_t rank : {0, 1}) {
    EXPECT_EQ(cluster.prefill(0, rank).Wait(), 0) << cluster.prefill(0, rank).Log();
    EXPECT_EQ(cluster.decode(0, rank).Wait(), 0) << cluster.decode(0, rank).Log();
  }
}

TEST(Groups, AKilledPrefillRankCostsNoRequest) {
  Cluster cluster(
      {.prefill_workers = 2, .prefill_ranks = 2, .prefill_flags = {"--prefill.chunk_tokens=16"}});
  ASSERT_TRUE(cluster.WaitUntilReady()) << cluster.router().Log();
  const std::vector<server::ClientRequest> requests = LongRequests(8, 40 / kSanitizedTestScale, 8);
  const std::vector<Tokens> expected = AllAtOnce(cluster, requests, [] {});
  const auto kill = [&] {
    EXPECT_TRUE(
        Eventually(30, [&] { return cluster.PrefillPages(0) > 0 && cluster.PrefillPages(1) > 0; }));
    cluster.prefill(0, 1).Signal(SIGKILL);
  };
  ExpectSame(AllAtOnce(cluster, requests, kill), expected);
  EXPECT_EQ(cluster.prefill(0, 0).Wait(), 1);
  EXPECT_THAT(cluster.prefill(0, 0).Log(), HasSubstr("rank 1"));
}

TEST(Groups, AKilledDecodeRankCostsNoRequestAndTheGroupComesBack) {
  Cluster cluster({.decode_workers = 2, .decode_ranks = 2});
  ASSERT_TRUE(cluster.WaitUntilReady()) << cluster.router().Log();
  const std::vector<server::ClientRequest> requests = LongRequests(8, 2, 240 / kSanitizedTestScale);
  const std::vector<Tokens> expected = AllAtOnce(cluster, requests, [] {});
  const auto wait_until_all_ranks_work = [&] {
    EXPECT_TRUE(Eventually(30, [&] {
      return cluster.DecodePages(0, 0) > 0 && cluster.DecodePages(0, 1) > 0 &&
             cluster.DecodePages(1, 0) > 0 && cluster.DecodePages(1, 1) > 0;
    }));
  };
  const auto kill = [&] {
    wait_until_all_ranks_work();
    cluster.decode(0, 1).Signal(SIGKILL);
  };
  ExpectSame(AllAtOnce(cluster, requests, kill), expected);
  EXPECT_EQ(cluster.decode(0, 0).Wait(), 1);
  EXPECT_THAT(cluster.decode(0, 0).Log(), HasSubstr("rank 1"));

  EXPECT_EQ(cluster.decode(0, 1).Wait(), 128 + SIGKILL);
  cluster.RestartEnded();
  EXPECT_TRUE(Eventually(30, [&] {
    return cluster.RouterSees("decode", cluster.decode(0, 0)) &&
           cluster.RouterSees("decode", cluster.decode(0, 1));
  }));
  ExpectSame(AllAtOnce(cluster, requests, wait_until_all_ranks_work), expected);
}

// Every expert on two ranks.
std::vector<std::string> Replicated() {
  return {"--decode.redundant_experts=16", "--decode.rebalance.survive_rank_loss=true"};
}

bool AllThreeWork(Cluster& cluster) {
  return cluster.DecodePages(0, 0) > 0 && cluster.DecodePages(0, 1) > 0 &&
         cluster.DecodePages(0, 2) > 0;
}

TEST(Groups, AGroupWithReplicasGoesOnWithoutAKilledRankAndTakesItBackIn) {
  Cluster cluster({.decode_ranks = 3, .decode_flags = Replicated()});
  ASSERT_TRUE(cluster.WaitUntilReady()) << cluster.router().Log();
  const std::vector<server::ClientRequest> requests = LongRequests(9, 2, 240 / kSanitizedTestScale);
  const std::vector<Tokens> expected = AllAtOnce(cluster, requests, [] {});
  EXPECT_GE(Metric(cluster.decode(0, 1), "baton_expert_rank_load{bound=\"most\"}"), 1);
  EXPECT_LE(Metric(cluster.decode(0, 1), "baton_expert_rank_load{bound=\"least\"}"), 1);
  EXPECT_GT(Metric(cluster.decode(0, 1), "baton_expert_rank_load{bound=\"least\"}"), 0);
  EXPECT_GT(Metric(cluster.decode(0, 1), "baton_expert_busiest_share"),
            1.0 / 16);  // 16 experts, unevenly used
  EXPECT_LT(Metric(cluster.decode(0, 1), "baton_expert_busiest_share"),
            0.25 + 1e-9);               // a token has four
  for (const size_t victim : {2, 0}) {  // 0 leads
    SCOPED_TRACE(victim);
    const auto kill = [&] {
      EXPECT_TRUE(Eventually(30, [&] { return AllThreeWork(cluster); }));
      cluster.decode(0, victim).Signal(SIGKILL);
      EXPECT_TRUE(Eventually(30, [&] { return cluster.Experts(1, "masked_ranks") == 1; }))
          << cluster.decode(0, 1).Log();
      EXPECT_EQ(cluster.Experts(1, "uncovered"), 0);
    };
    ExpectSame(AllAtOnce(cluster, requests, kill), expected);
    EXPECT_EQ(cluster.decode(0, victim).Wait(), 128 + SIGKILL);
    cluster.RestartEnded();
    // Unmasked, and every expert on two ranks again.
    EXPECT_TRUE(Eventually(30, [&] { return cluster.Experts(1, "on_one_rank") == 0; }))
        << cluster.decode(0, 1).Log();
    EXPECT_EQ(cluster.Experts(1, "masked_ranks"), 0);
    EXPECT_TRUE(Eventually(
        30, [&] { return HttpGet(cluster.decode(0, victim).http_port(), "/ready") == "ready\n"; }));
    EXPECT_TRUE(
        Eventually(30, [&] { return cluster.RouterSees("decode", cluster.decode(0, victim)); }));
    const auto all_work = [&] {
      EXPECT_TRUE(Eventually(30, [&] { return AllThreeWork(cluster); }));
    };
    ExpectSame(AllAtOnce(cluster, requests, all_work), expected);
  }
}

TEST(Groups, AStoppedDecodeRankIsGivenUpAndFindsThatWhenItWakes) {
  Cluster cluster({.decode_ranks = 3, .decode_flags = Replicated()});
  ASSERT_TRUE(cluster.WaitUntilReady()) << cluster.router().Log();
  const std::vector<server::ClientRequest> requests = LongRequests(9, 2, 240 / kSanitizedTestScale);
  const std::vector<Tokens> expected = AllAtOnce(cluster, requests, [] {});
  const auto stop = [&] {
    EXPECT_TRUE(Eventually(30, [&] { return AllThreeWork(cluster); }));
    cluster.decode(0, 2).Signal(SIGSTOP);
    EXPECT_TRUE(Eventually(30, [&] { return cluster.Experts(1, "masked_ranks") == 1; }))
        << cluster.decode(0, 1).Log();
  };
  ExpectSame(AllAtOnce(cluster, requests, stop), expected);
  cluster.decode(0, 2).Signal(SIGCONT);
  EXPECT_EQ(cluster.decode(0, 2).Wait(), 1) << cluster.decode(0, 2).Log();
  EXPECT_THAT(cluster.decode(0, 2).Log(), HasSubstr("this rank has left its group"));
  cluster.RestartEnded();
  EXPECT_TRUE(Eventually(30, [&] { return cluster.Experts(1, "masked_ranks") == 0; }))
      << cluster.decode(0, 1).Log();
  ExpectSame(AllAtOnce(cluster, requests, [] {}), expected);
}

TEST(Groups, ARankThatEndsByItselfFinishesItsRequestsAndLeavesTheOthersAtWork) {
  Cluster cluster({.decode_ranks = 3, .decode_flags = Replicated()});
  ASSERT_TRUE(cluster.WaitUntilReady()) << cluster.router().Log();
  const std::vector<server::ClientRequest> requests = LongRequests(9, 2, 240 / kSanitizedTestScale);
  const std::vector<Tokens> expected = AllAtOnce(cluster, requests, [] {});
  const auto end = [&] {
    EXPECT_TRUE(Eventually(30, [&] { return AllThreeWork(cluster); }));
    cluster.decode(0, 0).Signal(SIGTERM);
  };
  ExpectSame(AllAtOnce(cluster, requests, end), expected);
  EXPECT_EQ(cluster.decode(0, 0).Wait(), 0) << cluster.decode(0, 0).Log();
  EXPECT_EQ(Metric(cluster.router(), "baton_retries_total{cause=\"worker_lost\"}"), 0);
  EXPECT_TRUE(Eventually(30, [&] { return cluster.Experts(1, "masked_ranks") == 1; }));
  cluster.RestartEnded();
  EXPECT_TRUE(Eventually(30, [&] { return cluster.Experts(1, "masked_ranks") == 0; }));
}

TEST(Groups, ARankThatDoesNotFitSaysWhy) {
  const ScratchDirectory scratch;
  const std::string meeting_place = "127.0.0.1:" + std::to_string(FreePort());
  const auto start = [&](const std::string& name, const std::vector<std::string>& flags) {
    std::vector<std::string> arguments = {"prefill",
                                          std::string("--model=") + kModel,
                                          "--prefill.address=127.0.0.1:0",
                                          "--http-port=127.0.0.1:0",
                                          "--prefill.ranks=2",
                                          "--prefill.group_addresses=" + meeting_place};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    return std::make_unique<BatonProcess>(scratch, name, arguments);
  };
  const auto leader = start("leader", {"--prefill.rank=0"});
  const auto other = start("other", {"--prefill.rank=1", "--prefill.chunk_tokens=17"});
  EXPECT_EQ(other->Wait(), 1);
  EXPECT_THAT(other->Log(), HasSubstr("chunk_tokens=17"));
  EXPECT_THAT(other->Log(), HasSubstr("start all ranks of a group from one configuration"));

  // The one that fits is still waited for; its number comes from the environment, or is missing.
  EXPECT_TRUE(Eventually(30, [&] {
    return leader->Log().find("waiting for the other ranks") != std::string::npos;
  })) << leader->Log();
  EXPECT_THAT(leader->Log(), HasSubstr("missing rank 1"));
  const auto no_number = start("no-number", {"--prefill.rank=2"});
  EXPECT_EQ(no_number->Wait(), 2);
  EXPECT_THAT(no_number->Log(),
              HasSubstr("prefill.rank: 2 is not less than prefill.ranks (2, from"));
  const auto right = start("right", {"--prefill.rank=1"});
  EXPECT_TRUE(right->WaitForPorts()) << right->Log();
  EXPECT_TRUE(leader->WaitForPorts()) << leader->Log();

  // Alone again, it can be told to end while it waits.
  const auto alone = start("alone", {"--prefill.rank=0", "--prefill.group_addresses=127.0.0.1:" +
                                                             std::to_string(FreePort())});
  EXPECT_TRUE(Eventually(30, [&] {
    return alone->Log().find("waiting for the other ranks") != std::string::npos;
  })) << alone->Log();
  alone->Signal(SIGTERM);
  EXPECT_EQ(alone->Wait(), 0) << alone->Log();
}

}  // namespace
}  // namespace baton::e2e
