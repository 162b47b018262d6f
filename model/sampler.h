#ifndef BATON_MODEL_SAMPLER_H_
#define BATON_MODEL_SAMPLER_H_

// From logits to tokens: translates requests' sampling parameters into the ops' terms (min_tokens
// as a mask, penalties as counts of tokens seen) and runs them. The draw for a token is fixed by
// (seed, position), so prefill, decode and a resumed request agree. One thread.

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kernels/backend.h"
#include "kernels/ops.h"
#include "scheduler/types.h"

namespace baton::model {

class Sampler {
 public:
  // `eos_token_ids` are masked, like a request's stop tokens, until it has min_tokens.
  Sampler(kernels::Device& device, int32_t vocab_size, std::vector<TokenId> eos_token_ids);

  // Samples slices[i] from row i of `logits` (F32 [n, vocab_size]; overwritten where a mask
  // applies) and appends the tokens to `output`; a row without a distribution (NaN logits, or every
  // token masked) is a failure there, INTERNAL. `mask` is I32 [>= n, ceil(vocab_size / 32)] device
  // memory to work in.
  absl::Status Sample(std::span<const scheduler::SequenceSlice* const> slices,
                      const kernels::TensorView& logits, const kernels::TensorView& mask,
                      scheduler::StepOutput* output);

 private:
  // Sets the bits of all tokens but those `slice` must not sample yet; false when it may sample
  // all.
  bool FillMask(const scheduler::SequenceSlice& slice, std::span<uint32_t> bits) const;
  // Tokens of the slice's sequence with their counts, each once; empty without penalties.
  std::span<const kernels::TokenCount> CountTokens(const scheduler::SequenceSlice& slice,
                                                   std::vector<kernels::TokenCount>& counts);

  kernels::Device& device_;
  const int32_t vocab_size_;
  const std::vector<TokenId> eos_token_ids_;
  std::vector<uint32_t> mask_;                          // of the call in progress, host side
  std::vector<std::vector<kernels::TokenCount>> seen_;  // for each row of the call
  std::vector<int32_t> seen_index_;  // [vocab_size]: 1 + index into seen_[i]; all 0 between uses
  std::vector<kernels::SampleParams> params_;
  std::vector<kernels::SampleResult> results_;
};

}  // namespace baton::model

#endif  // BATON_MODEL_SAMPLER_H_
