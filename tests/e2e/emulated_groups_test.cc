// Groups of processes with an emulated GPU each, as a deployment has them: prefill shared by heads,
// decode by experts, each rank with its share of the weights, latents over NCCL. While requests
// run, experts move to other GPUs and ranks are killed. No accepted request is lost, and every
// token is the one that a single emulated rank gives.
//
// The model is small, with letters for tokens: the emulation takes a second for a token of the demo
// model, which nccl_handoff_test serves.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/e2e/cluster.h"

namespace baton::e2e {
namespace {

using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

constexpr char kSmallModel[] = BATON_SOURCE_DIR "/tests/data/models/bf16-groups-mtp";
constexpr int kTokens = 40;
constexpr double kPatience = 120;  // seconds for what an undisturbed group does in one or two

// The small model, which has no tokenizer of its own, with those of the demo model's tokens that
// are within its vocabulary: single bytes.
void MakeModel(const ScratchDirectory& directory) {
  for (const char* file : {"config.json", "model.safetensors"}) {
    std::filesystem::copy_file(std::string(kSmallModel) + "/" + file, directory.File(file));
  }
  constexpr char kConfig[] = "tokenizer_config.json";
  std::filesystem::copy_file(std::string(kModel) + "/" + kConfig, directory.File(kConfig));
  std::ifstream config(directory.File("config.json"));
  const int vocabulary = nlohmann::json::parse(config)["vocab_size"];
  std::ifstream file(std::string(kModel) + "/tokenizer.json");
  nlohmann::json tokenizer = nlohmann::json::parse(file);
  nlohmann::json vocab = nlohmann::json::object(), added = nlohmann::json::array();
  for (const auto& [text, id] : tokenizer["model"]["vocab"].items()) {
    if (id < vocabulary) vocab[text] = id;
  }
  for (const auto& token : tokenizer["added_tokens"]) {
    if (token["id"] < vocabulary) added.push_back(token);
  }
  tokenizer["model"]["vocab"] = vocab;
  tokenizer["model"]["merges"] = nlohmann::json::array();
  tokenizer["added_tokens"] = added;
  std::ofstream(directory.File("tokenizer.json")) << tokenizer;
}

// Greedy and sampled, of more than one page and less.
std::vector<server::ClientRequest> Requests(int count = 4) {
  std::vector<server::ClientRequest> requests;
  for (int i = 0; i < count; ++i) {
    server::ClientRequest request;
    request.text = "Request " + std::to_string(i) + ". ";
    for (int j = 0; j < 1 + i; ++j) request.text += "The files are read in the order given. ";
    request.max_tokens = kTokens;
    request.temperature = i % 2 == 0 ? 0.0f : 0.8f;
    request.seed = static_cast<uint64_t>(i);
    request.ignore_eos = true;
    requests.push_back(request);
  }
  return requests;
}

void ExpectSame(const std::vector<Tokens>& tokens, const std::vector<Tokens>& expected) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    EXPECT_EQ(expected[i].size(), static_cast<size_t>(kTokens));
    EXPECT_THAT(tokens[i], ElementsAreArray(expected[i])) << "request " << i;
  }
}

class EmulatedGroups : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    model_ = new ScratchDirectory;
    MakeModel(*model_);
    Cluster single(Options());
    ASSERT_TRUE(single.WaitUntilReady()) << single.router().Log();
    expected_ = new std::vector<Tokens>(AllAtOnce(single, Requests(), [] {}));
  }
  static void TearDownTestSuite() {
    delete expected_;
    delete model_;
  }

  // Patient, as the emulation is slow.
  static ClusterOptions Options() {
    const std::vector<std::string> both = {"--kernels.backend=cuda", "--handoff.transport=auto",
                                           "--handoff.nccl.staging_mb=16",
                                           "--handoff.timeout_ms=60000"};
    ClusterOptions options;
    options.worker_program = kBatonEmulated;
    options.model = model_->path();
    options.prefill_flags = both;
    options.prefill_flags.push_back("--prefill.chunk_tokens=16");
    options.decode_flags = both;
    options.decode_flags.push_back("--decode.prefill_timeout_ms=120000");
    options.group_timeout_ms = 60000;
    return options;
  }
  static bool AllWork(Cluster& cluster) {
    return cluster.DecodePages(0, 0) > 0 && cluster.DecodePages(0, 1) > 0;
  }
  static std::string Logs(Cluster& cluster) {
    return cluster.decode(0, 0).Log() + "\n" + cluster.decode(0, 1).Log();
  }

  static ScratchDirectory* model_;
  static std::vector<Tokens>* expected_;  // of a single emulated rank of each kind
};
ScratchDirectory* EmulatedGroups::model_ = nullptr;
std::vector<Tokens>* EmulatedGroups::expected_ = nullptr;

// Asks until a rebalance has moved experts; an answer may be that no loads are known yet.
void Rebalance(Cluster& cluster) {
  const ScratchDirectory scratch;
  EXPECT_TRUE(Eventually(kPatience, [&] {
    int code = 0;
    RunBaton(scratch, {"experts", "--rebalance", "--server=" + cluster.decode(0, 1).grpc_address()},
             &code);
    EXPECT_EQ(code, 0);
    PauseMillis(200);
    return Metric(cluster.decode(0, 0), "baton_expert_copies_total") > 0;
  })) << cluster.decode(0, 0).Log();
}

TEST_F(EmulatedGroups, ExpertsMoveAndAPrefillRankIsKilledWhileRequestsRun) {
  ClusterOptions options = Options();
  options.prefill_workers = 2;
  options.prefill_ranks = 2;
  options.decode_ranks = 2;
  options.prefill_flags.push_back("--prefill.prefix_cache=false");  // all prompts are computed
  options.decode_flags.push_back("--decode.prefix_cache=false");
  options.decode_flags.push_back("--decode.redundant_experts=4");
  options.decode_flags.push_back("--decode.rebalance.automatic=false");
  options.decode_flags.push_back("--decode.rebalance.max_staged=1");
  Cluster cluster(options);
  ASSERT_TRUE(cluster.WaitUntilReady()) << cluster.router().Log();
  ExpectSame(AllAtOnce(cluster, Requests(), [&] { Rebalance(cluster); }), *expected_);
  EXPECT_GE(Metric(cluster.decode(0, 1), "baton_expert_placement_version"), 2) << Logs(cluster);
  EXPECT_GT(Metric(cluster.decode(0, 1), "baton_handoff_received_messages_total"), 0);

  const auto kill = [&] {
    EXPECT_TRUE(Eventually(kPatience, [&] { return cluster.PrefillPages(0) > 0; }));
    cluster.prefill(0, 1).Signal(SIGKILL);
  };
  ExpectSame(AllAtOnce(cluster, Requests(), kill), *expected_);
  EXPECT_EQ(cluster.prefill(0, 0).Wait(), 1) << cluster.prefill(0, 0).Log();
  EXPECT_THAT(cluster.prefill(0, 0).Log(), HasSubstr("rank 1"));
  cluster.RestartEnded();
  EXPECT_TRUE(
      Eventually(kPatience, [&] { return cluster.RouterSees("prefill", cluster.prefill(0)); }));
  ExpectSame(AllAtOnce(cluster, Requests(2), [] {}), *expected_);
}

// Every expert on both ranks: either goes on alone, and the other's experts come back by copies.
TEST_F(EmulatedGroups, AKilledDecodeRankCostsNoRequestAndIsTakenBackIn) {
  ClusterOptions options = Options();
  options.prefill_ranks = 2;
  options.decode_ranks = 2;
  options.decode_flags.push_back("--decode.redundant_experts=16");
  options.decode_flags.push_back("--decode.rebalance.survive_rank_loss=true");
  Cluster cluster(options);
  ASSERT_TRUE(cluster.WaitUntilReady()) << cluster.router().Log();
  for (const size_t victim : {1, 0}) {  // 0 leads
    SCOPED_TRACE(victim);
    const size_t other = 1 - victim;
    const auto kill = [&] {
      EXPECT_TRUE(Eventually(kPatience, [&] { return AllWork(cluster); })) << Logs(cluster);
      cluster.decode(0, victim).Signal(SIGKILL);
      EXPECT_TRUE(Eventually(kPatience, [&] {
        return cluster.Experts(other, "masked_ranks") == 1;
      })) << Logs(cluster);
    };
    ExpectSame(AllAtOnce(cluster, Requests(), kill), *expected_);
    EXPECT_EQ(cluster.decode(0, victim).Wait(), 128 + SIGKILL);
    cluster.RestartEnded();
    EXPECT_TRUE(Eventually(kPatience, [&] { return cluster.Experts(other, "on_one_rank") == 0; }))
        << Logs(cluster);
    EXPECT_EQ(cluster.Experts(other, "masked_ranks"), 0);
    EXPECT_TRUE(Eventually(
        kPatience, [&] { return cluster.RouterSees("decode", cluster.decode(0, victim)); }));
  }
  ExpectSame(AllAtOnce(cluster, Requests(2), [] {}), *expected_);
}

}  // namespace
}  // namespace baton::e2e
