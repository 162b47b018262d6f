#include "model/sampler.h"

#include <algorithm>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"

namespace baton::model {

using kernels::TensorView;
using kernels::TokenCount;
using scheduler::SamplingParams;
using scheduler::SequenceSlice;

namespace {

int32_t End(const SequenceSlice& slice) { return slice.first_position + slice.row_count; }

std::string KeyText(const RequestKey& key) {
  std::ostringstream text;
  text << key;
  return text.str();
}

void AppendToken(const SequenceSlice& slice, const kernels::SampleResult& result,
                 scheduler::StepOutput* output) {
  scheduler::SampledToken token;
  token.key = slice.key;
  token.token = result.token;
  if (slice.sampling->top_logprobs >= 0) {
    token.logprob = result.logprob;
    for (int32_t i = 0; i < result.top_count; ++i) {
      token.top_logprobs.push_back(
          {.token = result.top[i].token, .logprob = result.top[i].logprob});
    }
  }
  output->tokens.push_back(std::move(token));
}

}  // namespace

Sampler::Sampler(kernels::Device& device, int32_t vocab_size, std::vector<TokenId> eos_token_ids)
    : device_(device),
      vocab_size_(vocab_size),
      eos_token_ids_(std::move(eos_token_ids)),
      seen_index_(static_cast<size_t>(vocab_size), 0) {}

bool Sampler::FillMask(const SequenceSlice& slice, std::span<uint32_t> bits) const {
  const SamplingParams& sampling = *slice.sampling;
  std::fill(bits.begin(), bits.end(), ~uint32_t{0});
  if (End(slice) - slice.prompt_tokens >= sampling.min_tokens) return false;
  const auto forbid = [&](TokenId id) { bits[id / 32] &= ~(uint32_t{1} << (id % 32)); };
  for (const TokenId id : sampling.stop_token_ids) forbid(id);
  if (!sampling.ignore_eos) {
    for (const TokenId id : eos_token_ids_) forbid(id);
  }
  return true;
}

std::span<const TokenCount> Sampler::CountTokens(const SequenceSlice& slice,
                                                 std::vector<TokenCount>& counts) {
  counts.clear();
  const SamplingParams& sampling = *slice.sampling;
  if (sampling.repetition_penalty == 1.0f && sampling.presence_penalty == 0.0f &&
      sampling.frequency_penalty == 0.0f) {
    return counts;
  }
  for (int32_t i = 0; i < End(slice); ++i) {
    const TokenId id = slice.sequence[i];
    if (id < 0 || id >= vocab_size_)
      continue;  // only rows that run are checked; nothing to penalize here
    int32_t& index = seen_index_[id];
    if (index == 0) {
      counts.push_back({.token = id, .generated = 0});
      index = static_cast<int32_t>(counts.size());
    }
    if (i >= slice.prompt_tokens) ++counts[index - 1].generated;
  }
  for (const TokenCount& count : counts) seen_index_[count.token] = 0;
  return counts;
}

absl::Status Sampler::Sample(std::span<const SequenceSlice* const> slices, const TensorView& logits,
                             const TensorView& mask, scheduler::StepOutput* output) {
  const size_t rows = slices.size();
  const size_t words = static_cast<size_t>(mask.dim(1));
  BATON_CHECK_EQ(static_cast<size_t>(logits.dim(0)), rows);
  mask_.resize(rows * words);
  if (seen_.size() < rows) seen_.resize(rows);
  params_.clear();
  results_.assign(rows, {});
  bool masked = false;
  for (size_t i = 0; i < rows; ++i) {
    const SequenceSlice& slice = *slices[i];
    const SamplingParams& sampling = *slice.sampling;
    masked |= FillMask(slice, std::span<uint32_t>(mask_).subspan(i * words, words));
    const std::span<const TokenCount> seen = CountTokens(slice, seen_[i]);
    params_.push_back({.temperature = sampling.temperature,
                       .top_k = sampling.top_k,
                       .top_p = sampling.top_p,
                       .min_p = sampling.min_p,
                       .repetition_penalty = sampling.repetition_penalty,
                       .presence_penalty = sampling.presence_penalty,
                       .frequency_penalty = sampling.frequency_penalty,
                       .seen = {seen.data(), seen.size()},
                       .seed = sampling.seed,
                       .position = End(slice),
                       .top_logprobs = std::max(sampling.top_logprobs, 0)});
  }
  if (masked) {
    BATON_RETURN_IF_ERROR(
        device_.CopyToDevice(mask.data, mask_.data(), mask_.size() * sizeof(uint32_t)));
    BATON_RETURN_IF_ERROR(LogitsMask(
        device_, {.logits = logits, .mask = mask.Slice(0, 0, static_cast<int64_t>(rows))}));
  }
  BATON_RETURN_IF_ERROR(kernels::Sample(
      device_, {.logits = logits, .params = params_, .results = absl::MakeSpan(results_)}));
  for (size_t i = 0; i < rows; ++i) {
    if (results_[i].token < 0) {
      output->failures.push_back(
          {slices[i]->key,
           absl::InternalError(absl::StrCat(
               "request ", KeyText(slices[i]->key), " has no token to sample at position ",
               End(*slices[i]), ": its logits hold NaN or infinity, or every token is masked"))});
      continue;
    }
    AppendToken(*slices[i], results_[i], output);
  }
  return absl::OkStatus();
}

}  // namespace baton::model
