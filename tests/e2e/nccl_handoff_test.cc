// Workers with emulated GPUs that hand over through the emulated NCCL: the tokens of one such rank
// alone, also when a prefill worker is killed, and where messages pass through pinned memory.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <sstream>

#include "tests/e2e/cluster.h"

namespace baton::e2e {
namespace {

using ::testing::HasSubstr;

// More than one page, so that a pass hands over several.
constexpr char kPrompt[] =
    "The command prints the name of the file and exits. The command prints the name of the file "
    "and exits. The command prints the name of the file and exits.";
constexpr char kOtherPrompt[] =
    "A file has a name, an owner and a mode. A file has a name, an owner and a mode. A file has a "
    "name, an owner and a mode. A file has a name, an owner and a mode.";
constexpr int kTokens = 3;

server::ClientRequest Request(const std::string& prompt) {
  server::ClientRequest request;
  request.text = prompt;
  request.max_tokens = kTokens;
  request.temperature = 0.0f;
  request.seed = 0;
  return request;
}

// What one rank says: an emulated one, or the CPU.
Tokens Expected(const std::string& prompt, const std::string& backend = "cuda") {
  const ScratchDirectory scratch;
  int code = 0;
  std::istringstream words(
      RunBaton(scratch,
               {"generate", std::string("--model=") + kModel, "--kernels.backend=" + backend,
                "--ids", "--max-tokens=" + std::to_string(kTokens), "--temperature=0", prompt},
               &code, backend == "cuda" ? kBatonEmulated : kBaton));
  EXPECT_EQ(code, 0);
  Tokens ids;
  for (TokenId id = 0; words >> id;) ids.push_back(id);
  EXPECT_EQ(ids.size(), static_cast<size_t>(kTokens));
  return ids;
}

// Patient, as the emulation is slow.
ClusterOptions Emulated(const std::string& transport, const std::string& memory) {
  const std::vector<std::string> both = {
      "--kernels.backend=cuda", "--handoff.transport=" + transport,
      "--handoff.nccl.memory=" + memory, "--handoff.nccl.staging_mb=16",
      "--handoff.timeout_ms=60000"};
  ClusterOptions options;
  options.worker_program = kBatonEmulated;
  options.prefill_flags = both;
  options.prefill_flags.push_back(
      "--prefill.chunk_tokens=16");  // so that a prompt takes several passes
  options.decode_flags = both;
  options.decode_flags.push_back("--decode.prefill_timeout_ms=120000");
  return options;
}

TEST(NcclHandoff, SameTokensAsOneRankAndAfterAPrefillWorkerIsKilled) {
  const Tokens expected = Expected(kPrompt);
  ClusterOptions options = Emulated("auto", "gpu");
  options.prefill_workers = 2;
  Cluster cluster(options);
  ASSERT_TRUE(cluster.WaitUntilReady()) << cluster.router().Log();
  EXPECT_EQ(TokensOf(*cluster.Connect(), Request(kPrompt)), expected);
  EXPECT_GT(Metric(cluster.decode(), "baton_handoff_received_messages_total"), 0);
  const Tokens others = Expected(kOtherPrompt);
  const std::vector<Tokens> tokens = AllAtOnce(cluster, {Request(kOtherPrompt)}, [&] {
    const auto busy = [&](size_t i) { return cluster.PrefillPages(i) > 0; };
    ASSERT_TRUE(Eventually(60, [&] { return busy(0) || busy(1); }));
    cluster.prefill(busy(0) ? 0 : 1).Signal(SIGKILL);
  });
  EXPECT_EQ(tokens[0], others);
}

TEST(NcclHandoff, ThroughPinnedMemory) {
  const Tokens expected = Expected("The");
  Cluster cluster(Emulated("nccl", "pinned"));
  ASSERT_TRUE(cluster.WaitUntilReady()) << cluster.router().Log();
  EXPECT_EQ(TokensOf(*cluster.Connect(), Request("The")), expected);
  EXPECT_GT(Metric(cluster.decode(), "baton_handoff_received_messages_total"), 0);
}

// Put into the decode rank's GPU.
TEST(NcclHandoff, OneSided) {
  const Tokens expected = Expected("The");
  ASSERT_EQ(setenv("SIMT_NCCL", "23007", 1), 0);  // of the workers
  ClusterOptions options = Emulated("nccl", "gpu");
  for (auto* flags : {&options.prefill_flags, &options.decode_flags}) {
    flags->push_back("--handoff.nccl.one_sided=true");
  }
  Cluster cluster(options);
  unsetenv("SIMT_NCCL");
  ASSERT_TRUE(cluster.WaitUntilReady()) << cluster.router().Log();
  EXPECT_EQ(TokensOf(*cluster.Connect(), Request("The")), expected);
  EXPECT_THAT(cluster.prefill(0).Log(), HasSubstr("hand-offs to a peer are one-sided"));
}

// Ranks as processes with a GPU each: prefill shares prompts by heads, decode its experts, and each
// prefill rank hands over its share. Greedy tokens are the CPU's, too.
TEST(NcclHandoff, GroupsOnGpusGiveTheTokensOfOneRank) {
  const std::vector<std::string> prompts = {"The command prints", "A file has a name"};
  std::vector<server::ClientRequest> requests;
  std::vector<Tokens> expected;
  for (const std::string& prompt : prompts) {
    requests.push_back(Request(prompt));
    expected.push_back(Expected(prompt));
    EXPECT_EQ(expected.back(), Expected(prompt, "cpu"));
  }
  ClusterOptions options = Emulated("auto", "gpu");
  options.prefill_ranks = 2;
  options.decode_ranks = 2;
  options.group_timeout_ms = 60000;
  options.decode_flags.push_back("--decode.redundant_experts=4");
  Cluster cluster(options);
  ASSERT_TRUE(cluster.WaitUntilReady()) << cluster.router().Log();
  EXPECT_EQ(TokensOf(*cluster.Connect(), requests[0]), expected[0]);
  EXPECT_EQ(AllAtOnce(cluster, requests, [] {}), expected);
}

}  // namespace
}  // namespace baton::e2e
