// Workers of several ranks in one process, each rank on an emulated GPU of its own: the tokens of
// two ranks that share one, whatever carries the latents, while experts move.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "server/main_model.h"
#include "tests/server/embedded_server.h"
#include "tests/simt/options.h"

namespace baton::server {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Ints = std::vector<int>;

constexpr int kGpus = 4;
constexpr int32_t kOutputTokens = 5;

struct Shape {
  int prefill_ranks = 1;
  int decode_ranks = 1;
  int redundant_experts = 0;  // of both
  std::string transport = "auto";
  std::string memory = "auto";  // of messages over NCCL
  std::string carrier = "nccl";
};
void PrintTo(const Shape& shape, std::ostream* out) {
  *out << "TP" << shape.prefill_ranks << " EP" << shape.decode_ranks << " +"
       << shape.redundant_experts << " " << shape.transport << " " << shape.memory;
}

// Patient, as the emulation is slow.
Config ConfigFor(const std::string& model, const Shape& shape) {
  Config config = ConfigOfRanks(model, shape.prefill_ranks, shape.decode_ranks,
                                shape.redundant_experts, shape.transport, "cuda");
  config.mutable_handoff()->mutable_nccl()->set_memory(shape.memory);
  config.mutable_handoff()->mutable_nccl()->set_staging_mb(16);
  config.mutable_handoff()->set_timeout_ms(60000);
  config.mutable_prefill()->set_pages(16);
  config.mutable_prefill()->set_chunk_tokens(32);
  config.mutable_decode()->set_pages(16);
  config.mutable_decode()->set_prefill_timeout_ms(120000);
  config.mutable_decode()->set_reserve_output_tokens(16);
  config.mutable_decode()->set_max_sequences(8);
  config.mutable_decode()->set_max_batch_rows(8);
  return config;
}

// Within a page, chunks and pages.
std::vector<ClientRequest> Requests(int32_t vocab_size) {
  return TokenRequests(5, {1, 40, 70}, vocab_size, kOutputTokens);
}

class EmbeddedGpuRanks : public testing::TestWithParam<std::string> {
 protected:
  EmbeddedGpuRanks() : options_({.seed = 3, .devices = kGpus}) {}
  void TearDown() override {
    const std::optional<simt::Fault> fault = simt::TakeFault();
    EXPECT_FALSE(fault.has_value()) << fault->Text();
  }
  const simt::ScopedOptions options_;
};

TEST_P(EmbeddedGpuRanks, GiveTheTokensOfOneRank) {
  const ModelFolder model(GetParam());
  std::vector<std::vector<TokenId>> expected;
  for (const Shape& shape : std::vector<Shape>{
           {.carrier = "inproc"},
           {.prefill_ranks = 2, .decode_ranks = 2, .redundant_experts = 2},
           {.transport = "nccl"},
           {.decode_ranks = 3, .transport = "inproc", .carrier = "inproc"},
           {.prefill_ranks = 2, .transport = "nccl", .memory = "pinned"},
           {.prefill_ranks = 2, .decode_ranks = 2, .transport = "ucx", .carrier = "ucx"}}) {
    SCOPED_TRACE(testing::PrintToString(shape));
    Server server(ConfigFor(model.path(), shape));
    EXPECT_THAT(server.carriers(), ElementsAre(shape.carrier));
    const std::vector<ClientRequest> requests = Requests(server.vocab_size());
    const std::vector<std::vector<TokenId>> tokens = server.TokensOf(requests);
    if (expected.empty()) expected = tokens;
    for (const std::vector<TokenId>& answer : tokens) {
      EXPECT_EQ(answer.size(), static_cast<size_t>(kOutputTokens));
    }
    EXPECT_EQ(tokens, expected);
    EXPECT_TRUE(server.Drain());
    EXPECT_EQ(server.Metric("baton_handoff_sent_bytes_total"),
              server.Metric("baton_handoff_received_bytes_total"));
    EXPECT_TRUE(server.embedded().health().ok());
  }
}

INSTANTIATE_TEST_SUITE_P(Models, EmbeddedGpuRanks,
                         testing::Values("tests/data/models/bf16-lora-yarn",
                                         "tests/data/models/fp8-sharded-mtp"),
                         [](const auto& info) { return "Model" + std::to_string(info.index); });

// Prefill's GPUs have room for one call or send at a time, decode's for as many receives as are
// granted beside one call: whatever the order of launches, nobody waits for ever.
TEST(EmbeddedGpuRanksRoom, GroupsAndHandOffsNeedNoMoreThanTheySay) {
  const ModelFolder model("tests/data/models/bf16-lora-yarn");
  Config config = ConfigFor(model.path(), {.prefill_ranks = 2, .decode_ranks = 2});
  config.mutable_handoff()->mutable_nccl()->set_max_concurrent(2);
  config.mutable_handoff()->mutable_nccl()->set_coalesce_ms(0);  // many small batches
  std::vector<std::vector<TokenId>> expected;
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    SCOPED_TRACE(seed);
    const simt::ScopedOptions options(
        {.seed = seed, .devices = kGpus, .nccl_room = {1, 1, 1 + 2, 1 + 2}});
    Server server(config);
    const auto tokens = server.TokensOf(Requests(server.vocab_size()));
    if (expected.empty()) expected = tokens;
    EXPECT_EQ(tokens, expected);
    EXPECT_TRUE(server.embedded().health().ok());
    EXPECT_TRUE(server.Drain());
  }
  EXPECT_FALSE(simt::TakeFault().has_value());
}

// Of its ranks and their transports as well: here of weights, and of an NCCL without puts.
TEST(EmbeddedGpuLog, HasWhatRanksAndTransportsSay) {
  const simt::ScopedOptions options({.seed = 1});
  const ModelFolder model("tests/data/models/bf16-lora-yarn");
  Config config = ConfigFor(model.path(), {.transport = "nccl"});
  config.mutable_handoff()->mutable_nccl()->set_one_sided(true);
  std::mutex mutex;
  std::string lines;
  Server server(config, Log({.sink = [&](std::string_view line) {
                  const std::lock_guard lock(mutex);
                  lines.append(line).append("\n");
                }}));
  EXPECT_TRUE(server.Drain());
  const std::lock_guard lock(mutex);
  for (const char* role : {"prefill", "decode"}) {
    const std::string who = std::string("component=") + role + " rank=0";
    EXPECT_THAT(lines, ContainsRegex("I weights are copied to the GPU " + who));
    EXPECT_THAT(lines, ContainsRegex("W hand-offs are not one-sided " + who + " why=.*2.28.9"));
  }
}

// Without memory_mb: beside weights, working memory and staging, and no more than the fraction.
TEST(EmbeddedGpuMemory, PagesAreWhatTheGpusHaveLeft) {
  const ModelFolder model("tests/data/models/bf16-lora-yarn");
  constexpr double kFraction = 0.75;
  Config config = ConfigFor(model.path(), {});
  config.mutable_kernels()->mutable_cuda()->set_memory_fraction(kFraction);
  config.mutable_prefill()->set_pages(0);
  config.mutable_decode()->set_pages(0);
  for (const int gpus : {1, 2}) {
    SCOPED_TRACE(gpus);
    const simt::ScopedOptions options({.devices = gpus});
    const double allowed = kFraction * static_cast<double>(simt::GetOptions().device_bytes);
    Server server(config);
    for (int gpu = 0; gpu < gpus; ++gpu) {
      const auto used = static_cast<double>(simt::AllocatedBytes(gpu));
      EXPECT_LE(used, allowed);
      // What is not taken yet: working memory and staging of the roles that are here.
      const double kept = (512 + 16) * (gpus == 1 ? 2 : 1) * 1048576.0;
      EXPECT_GE(used + kept, 0.98 * allowed);
    }
    EXPECT_TRUE(server.Drain());
  }
}

TEST(EmbeddedGpuMemory, AGpuThatIsTooSmallIsToldWithTheSum) {
  const simt::ScopedOptions options({.device_bytes = size_t{512} << 20});
  const ModelFolder model("tests/data/models/bf16-lora-yarn");
  Config config = ConfigFor(model.path(), {});
  const auto loaded = model::LoadModel(model.path()).value();
  EXPECT_TRUE(RunnerOptionsFor(config, RunnerRole::kDecode, *loaded).ok());  // told the pages
  config.mutable_decode()->set_pages(0);
  const absl::Status status = RunnerOptionsFor(config, RunnerRole::kDecode, *loaded).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(
      std::string(status.message()),
      AllOf(HasSubstr("kernels.cuda.memory_fraction: 0.9 of the GPU's 512.0 MiB, 460.8 MiB, "
                      "do not hold what a rank of decode needs"),
            HasSubstr("528.0 MiB working memory and staging"),
            HasSubstr("raise it, raise decode.ranks, or use GPUs with more memory")));
  // One-sided hand-offs have 64 windows of 4 MiB.
  config.mutable_handoff()->mutable_nccl()->set_one_sided(true);
  EXPECT_THAT(
      std::string(RunnerOptionsFor(config, RunnerRole::kDecode, *loaded).status().message()),
      HasSubstr("784.0 MiB working memory and staging"));
  config.mutable_decode()->set_memory_mb(64);
  EXPECT_GT(RunnerOptionsFor(config, RunnerRole::kDecode, *loaded)->total_pages, 0);
}

TEST(GpuPlan, EachRankHasAGpuOrAnErrorSaysHowManyThereAre) {
  const Config groups = ConfigFor("", {.prefill_ranks = 2, .decode_ranks = 3});
  const GpuPlan plan = PlanGpus(groups, 6).value();
  EXPECT_EQ(plan.prefill, (Ints{0, 1}));
  EXPECT_EQ(plan.decode, (Ints{2, 3, 4}));
  EXPECT_TRUE(plan.apart);
  const absl::Status few = PlanGpus(groups, 4).status();
  EXPECT_TRUE(absl::IsInvalidArgument(few));
  EXPECT_THAT(std::string(few.message()),
              HasSubstr("2 of prefill and 3 of decode want 5, and this process sees 4; lower "
                        "--prefill.ranks or --decode.ranks"));

  const Config alone = ConfigFor("", {});
  EXPECT_EQ(PlanGpus(alone, 2).value().decode, Ints{1});
  EXPECT_EQ(PlanGpus(alone, 1).value().decode, Ints{0});
  EXPECT_FALSE(PlanGpus(alone, 1).value().apart);
  Config on_cpu = groups;
  on_cpu.mutable_kernels()->set_backend("cpu");
  EXPECT_TRUE(PlanGpus(on_cpu, 8).value().prefill.empty());
}

}  // namespace
}  // namespace baton::server
