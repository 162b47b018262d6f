#include "model/model_runner.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/generate.h"
#include "tests/model/model_harness.h"

namespace baton::model {
namespace {

using scheduler::FinishReason;
using testing::ElementsAre;
using testing::HasSubstr;

class ModelRunnerTest : public testing::Test {
 protected:
  ModelRunnerTest() : model_(LoadTestModel("bf16-lora-yarn")), runner_(NewRunner()) {
    prompt_ = RandomTokens(70, model_->config.vocab_size, 5);
    options_.sampling.temperature = 0.0f;
    options_.sampling.max_tokens = 12;
    options_.sampling.ignore_eos = true;
  }

  std::unique_ptr<Runner> NewRunner(int32_t total_pages = 8) {
    RunnerOptions options;
    options.device.threads = 1;
    options.total_pages = total_pages;
    options.max_batch_rows = 128;
    auto runner = CreateRunner(model_, options);
    EXPECT_TRUE(runner.ok()) << runner.status();
    return std::move(*runner);
  }
  GenerateResult Generated(const GenerateOptions& options) {
    const auto result = Generate(*runner_, clock_, prompt_, options, nullptr);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *result : GenerateResult{};
  }

  const std::shared_ptr<const LoadedModel> model_;
  const std::unique_ptr<Runner> runner_;
  ManualClock clock_;
  std::vector<TokenId> prompt_;
  GenerateOptions options_;
};

TEST_F(ModelRunnerTest, InfoDescribesTheRank) {
  const RunnerInfo& info = runner_->info();
  EXPECT_EQ(info.model_name, "bf16-lora-yarn");
  EXPECT_EQ(info.model_hash, model_->hash);
  EXPECT_EQ(info.kv_format, "bf16");
  EXPECT_EQ(info.layers, 3);
  EXPECT_EQ(info.entry_bytes, 80);
  EXPECT_EQ(info.total_pages, 8);
  EXPECT_EQ(info.max_positions, 512);  // 8 pages hold as many
  EXPECT_EQ(info.vocab_size, 256);
}

TEST_F(ModelRunnerTest, RefusesBadOptions) {
  for (const auto& break_it : std::vector<void (*)(RunnerOptions&)>{
           [](RunnerOptions& o) { o.page_tokens = 8; }, [](RunnerOptions& o) { o.total_pages = 0; },
           [](RunnerOptions& o) { o.max_batch_rows = 0; },
           [](RunnerOptions& o) { o.device.threads = -1; },
           [](RunnerOptions& o) { o.activations = kernels::DType::kI32; }}) {
    RunnerOptions options;
    break_it(options);
    EXPECT_EQ(CreateRunner(model_, options).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(ModelRunnerTest, ChunkingDoesNotChangeTokens) {
  options_.chunk_tokens = 128;
  const GenerateResult whole = Generated(options_);
  EXPECT_EQ(whole.tokens.size(), 12u);
  EXPECT_EQ(whole.finish, FinishReason::kLength);
  for (const int32_t chunk : {1, 33, 64}) {
    options_.chunk_tokens = chunk;
    EXPECT_EQ(Generated(options_).tokens, whole.tokens) << chunk;
  }
}

TEST_F(ModelRunnerTest, SeedFixesTheSample) {
  options_.sampling.temperature = 2.0f;
  options_.sampling.seed = 42;
  const auto a = Generated(options_).tokens;
  EXPECT_EQ(Generated(options_).tokens, a);
  options_.sampling.seed = 43;
  EXPECT_NE(Generated(options_).tokens, a);
}

TEST_F(ModelRunnerTest, StopsAtEosStopTokenAndCallback) {
  const auto tokens = Generated(options_).tokens;
  const TokenId third = tokens[2];
  const size_t first_at = std::find(tokens.begin(), tokens.end(), third) - tokens.begin();

  options_.sampling.stop_token_ids = {third};
  GenerateResult stopped = Generated(options_);
  EXPECT_EQ(stopped.finish, FinishReason::kStop);
  EXPECT_EQ(stopped.tokens.size(), first_at + 1);

  options_.sampling.stop_token_ids.clear();
  options_.sampling.ignore_eos = false;
  options_.eos_token_ids = {third};
  stopped = Generated(options_);
  EXPECT_EQ(stopped.finish, FinishReason::kStop);
  EXPECT_EQ(stopped.tokens.size(), first_at + 1);

  int calls = 0;
  options_.eos_token_ids.clear();
  const auto cancelled = Generate(*runner_, clock_, prompt_, options_,
                                  [&](const scheduler::SampledToken&) { return ++calls < 4; });
  ASSERT_TRUE(cancelled.ok()) << cancelled.status();
  EXPECT_EQ(cancelled->finish, FinishReason::kCancelled);
  EXPECT_EQ(cancelled->tokens.size(), 4u);
}

TEST_F(ModelRunnerTest, MinTokensPutsStopTokensOff) {
  const auto tokens = Generated(options_).tokens;
  options_.sampling.stop_token_ids = {tokens[0]};
  options_.sampling.min_tokens = 5;
  const GenerateResult result = Generated(options_);
  ASSERT_GE(result.tokens.size(), 5u);
  for (int i = 0; i < 5; ++i) EXPECT_NE(result.tokens[i], tokens[0]);
}

TEST_F(ModelRunnerTest, PenaltiesDriveRepetitionOut) {
  options_.sampling.max_tokens = 40;
  options_.sampling.presence_penalty = 2.0f;
  options_.sampling.frequency_penalty = 2.0f;
  options_.sampling.repetition_penalty = 50.0f;
  const auto tokens = Generated(options_).tokens;
  const std::set<TokenId> distinct(tokens.begin(), tokens.end());
  EXPECT_EQ(distinct.size(), tokens.size());
}

TEST_F(ModelRunnerTest, ReportsLogprobsOfGreedyTokens) {
  options_.sampling.top_logprobs = 3;
  std::vector<scheduler::SampledToken> seen;
  ASSERT_TRUE(
      Generate(*runner_, clock_, prompt_, options_, [&](const scheduler::SampledToken& token) {
        seen.push_back(token);
        return true;
      }).ok());
  ASSERT_EQ(seen.size(), 12u);
  for (const scheduler::SampledToken& token : seen) {
    ASSERT_EQ(token.top_logprobs.size(), 3u);
    EXPECT_EQ(token.top_logprobs[0].token, token.token);
    EXPECT_EQ(token.top_logprobs[0].logprob, token.logprob);
    EXPECT_LE(token.top_logprobs[1].logprob, token.logprob);
    EXPECT_LT(token.logprob, 0.0f);
  }
}

TEST_F(ModelRunnerTest, GenerateRefusesWhatDoesNotFit) {
  const auto status = [&](std::vector<TokenId> prompt) {
    return Generate(*runner_, clock_, prompt, options_, nullptr).status();
  };
  EXPECT_EQ(status({}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status(std::vector<TokenId>(512, 5)).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status({5, 256}).message()),
              HasSubstr("holds the token 256, expected [0, 256)"));
}

TEST_F(ModelRunnerTest, GenerateEndsWhenThePagesDo) {
  const std::unique_ptr<Runner> small = NewRunner(/*total_pages=*/1);
  options_.sampling.max_tokens = 1000;
  prompt_.resize(60);
  const auto result = Generate(*small, clock_, prompt_, options_, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->finish, FinishReason::kLength);
  EXPECT_EQ(result->tokens.size(), 4u);
}

// Several sequences in one plan: only the slices that ask are sampled, in plan order, under their
// keys.
TEST_F(ModelRunnerTest, SamplesTheSlicesThatAsk) {
  const GenerateResult alone = Generated(options_);
  const std::vector<PageId> pages_a = {PageId(3), PageId(1)};
  const std::vector<PageId> pages_b = {PageId(5)};
  const std::vector<TokenId> other = RandomTokens(9, 256, 77);
  scheduler::BatchPlan plan;
  plan.total_rows = 79;
  plan.slices.push_back(
      {.key = {RequestId(1), 0}, .sequence = other, .row_count = 9, .pages = pages_b});
  plan.slices.push_back({.key = {RequestId(2), 1},
                         .sequence = prompt_,
                         .prompt_tokens = 70,
                         .row_count = 70,
                         .pages = pages_a,
                         .sample = true,
                         .sampling = &options_.sampling});
  scheduler::StepOutput output;

  class Recorder final : public LayerObserver {
   public:
    void OnLayerWritten(int32_t layer) override { layers.push_back(layer); }
    std::vector<int32_t> layers;
  } recorder;
  ASSERT_TRUE(runner_->Run(plan, &recorder, &output).ok());
  EXPECT_THAT(recorder.layers, ElementsAre(0, 1, 2));
  ASSERT_EQ(output.tokens.size(), 1u);
  EXPECT_EQ(output.tokens[0].key, (RequestKey{RequestId(2), 1}));
  EXPECT_EQ(output.tokens[0].token, alone.tokens[0]);
}

TEST_F(ModelRunnerTest, SamplesMoreRowsThanTheHeadTakesAtOnce) {
  constexpr int kSequences = 70;
  const std::unique_ptr<Runner> runner = NewRunner(kSequences);
  std::vector<std::vector<TokenId>> sequences;
  std::vector<std::vector<PageId>> pages;
  for (int i = 0; i < kSequences; ++i) {
    sequences.push_back({static_cast<TokenId>(2 + i)});
    pages.push_back({PageId(static_cast<uint32_t>(i))});
  }
  scheduler::BatchPlan together;
  scheduler::StepOutput output;
  std::vector<TokenId> alone;
  for (int i = 0; i < kSequences; ++i) {
    scheduler::BatchPlan plan;
    plan.total_rows = 1;
    plan.slices.push_back({.key = {RequestId(static_cast<uint64_t>(i)), 0},
                           .sequence = sequences[i],
                           .prompt_tokens = 1,
                           .row_count = 1,
                           .pages = pages[i],
                           .sample = true,
                           .sampling = &options_.sampling});
    ASSERT_TRUE(runner->Run(plan, nullptr, &output).ok());
    alone.push_back(output.tokens[0].token);
    together.slices.push_back(plan.slices[0]);
    ++together.total_rows;
  }
  ASSERT_TRUE(runner->Run(together, nullptr, &output).ok());
  ASSERT_EQ(output.tokens.size(), alone.size());
  for (int i = 0; i < kSequences; ++i) {
    EXPECT_EQ(output.tokens[i].key.request.value(), static_cast<uint64_t>(i));
    EXPECT_EQ(output.tokens[i].token, alone[i]);
  }
}

TEST_F(ModelRunnerTest, RefusesBadPlans) {
  const std::vector<PageId> pages = {PageId(0), PageId(7)};
  const std::vector<PageId> foreign = {PageId(0), PageId(8)};
  scheduler::SequenceSlice good{.key = {RequestId(4), 0},
                                .sequence = prompt_,
                                .prompt_tokens = 70,
                                .row_count = 70,
                                .pages = pages,
                                .sample = true,
                                .sampling = &options_.sampling};
  const auto refuse = [&](const scheduler::SequenceSlice& slice, int32_t rows,
                          const std::string& message) {
    scheduler::BatchPlan plan;
    plan.slices = {slice};
    plan.total_rows = rows;
    scheduler::StepOutput output;
    absl::Status status = runner_->Run(plan, nullptr, &output);
    EXPECT_TRUE(output.tokens.empty());
    // The sums are the plan's fault, all else one slice's.
    if (status.ok() && !output.failures.empty()) status = output.failures[0].status;
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  };
  const auto with = [&](auto change) {
    scheduler::SequenceSlice slice = good;
    change(slice);
    return slice;
  };
  refuse(good, 71, "has 70 rows, says 71");
  refuse(with([](auto& s) { s.row_count = 0; }), 0, "request 4.0 has 0 rows");
  refuse(with([](auto& s) { s.row_count = 129; }), 129, "expected 1..128");
  refuse(with([](auto& s) { s.first_position = -1; }), 70, "positions -1");
  refuse(with([](auto& s) { s.first_position = 500; }), 70, "positions end at 512");
  refuse(with([](auto& s) { s.first_position = 1; }), 70, "gives 70 tokens, needs 71");
  refuse(with([&](auto& s) { s.pages = std::span(pages).first(1); }), 70,
         "page table of 1, needs 2");
  refuse(with([&](auto& s) { s.pages = foreign; }), 70, "names page 8, expected [0, 8)");
  refuse(with([](auto& s) { s.sampling = nullptr; }), 70, "no sampling parameters");
  refuse(with([](auto& s) { s.prompt_tokens = 71; }), 70,
         "says 71 of its 70 tokens are the prompt");
  scheduler::SamplingParams bad = options_.sampling;
  bad.top_logprobs = 21;
  refuse(with([&](auto& s) { s.sampling = &bad; }), 70, "21 top_logprobs");
  bad.top_logprobs = -1;
  bad.top_p = 0;
  refuse(with([&](auto& s) { s.sampling = &bad; }), 70, "top_p 0, min_p 0");
  bad.top_p = 1;
  bad.temperature = NAN;
  refuse(with([&](auto& s) { s.sampling = &bad; }), 70, "temperature nan");
  bad.temperature = 0;
  bad.stop_token_ids = {256};
  refuse(with([&](auto& s) { s.sampling = &bad; }), 70, "stop token 256");
}

// A slice that cannot be run and one that has no token to sample fail alone: the slices around them
// get the tokens that they get without them.
TEST_F(ModelRunnerTest, FailedSlicesLeaveTheOthersAlone) {
  constexpr int kSlices = 5;
  const std::unique_ptr<Runner> runner = NewRunner(kSlices);
  std::vector<std::vector<TokenId>> sequences;
  std::vector<std::vector<PageId>> pages;
  for (int i = 0; i < kSlices; ++i) {
    sequences.push_back(RandomTokens(7 + i, 256, 50 + static_cast<uint64_t>(i)));
    pages.push_back({PageId(static_cast<uint32_t>(i))});
  }
  scheduler::SamplingParams masked = options_.sampling;  // every token is forbidden
  masked.min_tokens = 5;
  for (TokenId id = 0; id < 256; ++id) masked.stop_token_ids.push_back(id);
  const auto plan_of = [&](const std::vector<int>& which) {
    scheduler::BatchPlan plan;
    for (const int i : which) {
      const auto rows = static_cast<int32_t>(sequences[i].size());
      plan.slices.push_back({.key = {RequestId(static_cast<uint64_t>(i)), 0},
                             .sequence = sequences[i],
                             .prompt_tokens = rows,
                             .row_count = rows,
                             .pages = pages[i],
                             .sample = true,
                             .sampling = i == 3 ? &masked : &options_.sampling});
      plan.total_rows += rows;
    }
    return plan;
  };
  scheduler::StepOutput good, mixed;
  ASSERT_TRUE(runner->Run(plan_of({0, 2, 4}), nullptr, &good).ok());
  ASSERT_EQ(good.tokens.size(), 3u);
  EXPECT_TRUE(good.failures.empty());

  sequences[1][3] = 256;  // not a token
  const absl::Status status = runner->Run(plan_of({0, 1, 2, 3, 4}), nullptr, &mixed);
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_EQ(mixed.tokens.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(mixed.tokens[i].key, good.tokens[i].key);
    EXPECT_EQ(mixed.tokens[i].token, good.tokens[i].token);
  }
  ASSERT_EQ(mixed.failures.size(), 2u);
  EXPECT_EQ(mixed.failures[0].key.request, RequestId(1));
  EXPECT_EQ(mixed.failures[0].status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(mixed.failures[1].key.request, RequestId(3));
  EXPECT_EQ(mixed.failures[1].status.code(), absl::StatusCode::kInternal);
}

TEST_F(ModelRunnerTest, AnEmptyPlanDoesNothing) {
  scheduler::StepOutput output;
  EXPECT_TRUE(runner_->Run({}, nullptr, &output).ok());
  EXPECT_TRUE(output.tokens.empty());
}

}  // namespace
}  // namespace baton::model
