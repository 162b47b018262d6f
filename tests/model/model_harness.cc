#include "tests/model/model_harness.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/random.h"

namespace baton::model {
namespace {

template <typename T>
T ValueOrDie(absl::StatusOr<T> result) {
  BATON_CHECK_MSG(result.ok(), result.status().ToString());
  return std::move(result).value();
}

}  // namespace

std::string TestModelDirectory(const std::string& name) {
  return std::string(BATON_SOURCE_DIR) + "/tests/data/models/" + name;
}

const std::vector<std::string>& TestModelNames() {
  static const std::vector<std::string> names = {"bf16-lora-yarn", "bf16-groups-mtp",
                                                 "fp8-ragged-yarn", "fp8-sharded-mtp"};
  return names;
}

std::shared_ptr<const LoadedModel> LoadTestModel(const std::string& name) {
  return ValueOrDie(LoadModel(TestModelDirectory(name)));
}

ModelHarness::ModelHarness(std::shared_ptr<const LoadedModel> model, const RunnerOptions& options,
                           bool uploads)
    : model_(std::move(model)), group_(options.group) {
  device_ = ValueOrDie(kernels::CreateDevice(options.device));
  weights_ = ValueOrDie(
      RankWeights::Create(*device_, *model_, options.group,
                          {.uploads = uploads || options.upload_weights || !device_->host_memory(),
                           .spare_experts = options.spare_experts,
                           .progress = {}}));
  cache_ = ValueOrDie(KvCache::Create(*device_, model_->config,
                                      {.format = options.kv_format,
                                       .page_tokens = options.page_tokens,
                                       .total_pages = options.total_pages}));
  decoder_ = ValueOrDie(
      Decoder::Create(*device_, *model_, *weights_, *cache_, DecoderOptionsFor(options)));
}

void ModelHarness::Install(const scheduler::ActiveExperts& active) {
  absl::Status status =
      weights_->Bring(*device_, *active.placement, group_.rank(), [](int64_t) { return true; });
  if (status.ok()) status = decoder_->InstallExperts(active);
  BATON_CHECK_MSG(status.ok(), status.ToString());
}

std::vector<LogitRow> ModelHarness::Forward(scheduler::Form form,
                                            const std::vector<TestSlice>& slices) {
  return Run(form, slices, LogitRows::kAll);
}

std::vector<LogitRow> ModelHarness::SampledLogits(scheduler::Form form,
                                                  const std::vector<TestSlice>& slices) {
  return Run(form, slices, LogitRows::kSampled);
}

scheduler::BatchPlan ModelHarness::PlanOf(scheduler::Form form,
                                          const std::vector<TestSlice>& slices,
                                          LogitRows logit_rows, std::vector<int32_t>* wanted) {
  static const scheduler::SamplingParams kSampling;
  scheduler::BatchPlan plan;
  plan.step = step_++;
  plan.form = form;
  for (const TestSlice& slice : slices) {
    plan.slices.push_back({.sequence = slice.sequence->tokens,
                           .first_position = slice.begin,
                           .row_count = slice.end - slice.begin,
                           .pages = slice.sequence->pages,
                           .sample = slice.sample,
                           .sampling = &kSampling});
    for (int32_t position = slice.begin; position < slice.end; ++position, ++plan.total_rows) {
      const bool sampled = slice.sample && position + 1 == slice.end;
      if (logit_rows == LogitRows::kAll || sampled) wanted->push_back(plan.total_rows);
    }
  }
  return plan;
}

absl::Status ModelHarness::Try(scheduler::Form form, const std::vector<TestSlice>& slices) {
  std::vector<int32_t> wanted;
  const scheduler::BatchPlan plan = PlanOf(form, slices, LogitRows::kAll, &wanted);
  return decoder_->Forward(plan, nullptr, LogitRows::kAll, parts_, most_rows_);
}

std::vector<LogitRow> ModelHarness::Run(scheduler::Form form, const std::vector<TestSlice>& slices,
                                        LogitRows logit_rows) {
  std::vector<int32_t> wanted;
  const scheduler::BatchPlan plan = PlanOf(form, slices, logit_rows, &wanted);
  const absl::Status status = decoder_->Forward(plan, nullptr, logit_rows, parts_, most_rows_);
  BATON_CHECK_MSG(status.ok(), status.ToString());
  std::vector<LogitRow> rows;
  const std::span<const int32_t> all(wanted);
  const auto group = static_cast<size_t>(decoder_->max_logit_rows());
  for (size_t begin = 0; begin < all.size(); begin += group) {
    const kernels::TensorView logits =
        ValueOrDie(decoder_->Logits(all.subspan(begin, std::min(group, all.size() - begin))));
    if (logits.absent()) continue;  // rank 0 of the group has them
    for (int64_t i = 0; i < logits.dim(0); ++i) {
      LogitRow& row = rows.emplace_back(static_cast<size_t>(logits.dim(1)));
      const absl::Status copied =
          device_->CopyToHost(row.data(), logits.row<const float>(i), row.size() * sizeof(float));
      BATON_CHECK_MSG(copied.ok(), copied.ToString());
    }
  }
  return rows;
}

std::vector<LogitRow> ModelHarness::RunSequence(const TestSequence& sequence, int32_t prompt,
                                                int32_t chunk) {
  std::vector<LogitRow> rows;
  const int32_t length = static_cast<int32_t>(sequence.tokens.size());
  for (int32_t begin = 0; begin < length;) {
    const bool in_prompt = begin < prompt;
    const int32_t end = in_prompt ? std::min(begin + chunk, prompt) : begin + 1;
    const scheduler::Form form = in_prompt ? scheduler::Form::kPrefill : scheduler::Form::kDecode;
    for (LogitRow& row : Forward(form, {{&sequence, begin, end}})) rows.push_back(std::move(row));
    begin = end;
  }
  return rows;
}

std::vector<PageId> TestPages(int32_t tokens, int32_t page_tokens, uint32_t first,
                              uint32_t stride) {
  std::vector<PageId> pages;
  for (int32_t t = 0; t < tokens; t += page_tokens) {
    pages.push_back(PageId(first + stride * static_cast<uint32_t>(pages.size())));
  }
  return pages;
}

std::vector<TokenId> RandomTokens(int32_t count, int32_t vocab_size, uint64_t seed) {
  Rng rng(seed);
  std::vector<TokenId> tokens;
  for (int32_t i = 0; i < count; ++i) {
    tokens.push_back(static_cast<TokenId>(2 + rng.Below(static_cast<uint64_t>(vocab_size - 2))));
  }
  return tokens;
}

}  // namespace baton::model
