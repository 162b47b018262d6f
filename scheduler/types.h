#ifndef BATON_SCHEDULER_TYPES_H_
#define BATON_SCHEDULER_TYPES_H_

// Values that the scheduler decides about and the model executes: sampling parameters and batch
// plans. Plain data: no behaviour, no ownership of anything outside itself. The only scheduler
// header that model/ may include.

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/ids.h"

namespace baton::scheduler {

// How the next token is chosen. Filled and validated by server/; the seed is always set by then
// (drawn once per request when the client gave none), so that every attempt of a request samples
// the same tokens.
struct SamplingParams {
  float temperature = 1.0f;         // >= 0; 0 = greedy
  int32_t top_k = 0;                // 0 = off
  float top_p = 1.0f;               // (0, 1]; 1 = off
  float min_p = 0.0f;               // [0, 1); 0 = off
  float repetition_penalty = 1.0f;  // > 0; 1 = off; over prompt and output tokens
  float presence_penalty = 0.0f;    // [-2, 2]; over output tokens
  float frequency_penalty = 0.0f;   // [-2, 2]; over output tokens
  uint64_t seed = 0;
  int32_t max_tokens = 16;  // output tokens at most; >= 1
  int32_t min_tokens = 0;   // end-of-sequence and stop ids are not sampled before this many
  bool ignore_eos = false;
  int32_t top_logprobs = -1;  // -1 = none, 0 = the chosen token's only, n = also the n best
  std::vector<TokenId> stop_token_ids;  // end the request; the stop token itself is not delivered
};

enum class FinishReason : uint8_t { kNone, kStop, kLength, kCancelled, kError };

// Which form of attention computes a pass (architecture, "Two forms, one rule").
enum class Form : uint8_t {
  kPrefill,  // MHA form: latents expanded per head; for prompt tokens
  kDecode,   // absorbed form on latents; for generated tokens (one row a step, several when
             // replaying)
};

// One sequence's part of a batch. Spans point into the planner's state and stay valid until its
// next Step.
struct SequenceSlice {
  RequestKey key;
  // Every token known so far, prompt then output: [0, first_position + row_count).
  std::span<const TokenId> sequence;
  int32_t prompt_tokens = 0;   // how many of `sequence` are the prompt (penalties, min_tokens)
  int32_t first_position = 0;  // position of the first row to run
  int32_t row_count = 0;  // rows to run: sequence[first_position .. first_position + row_count)
  // Page table: pages[i] holds positions [i * page_tokens, (i + 1) * page_tokens); covers all rows.
  std::span<const PageId> pages;
  bool sample = false;  // sample the token at position first_position + row_count from the last row
  const SamplingParams* sampling = nullptr;  // not null when `sample`
};

// One forward pass. All slices have the plan's form.
struct BatchPlan {
  uint64_t step = 0;  // counts the worker's passes
  Form form = Form::kPrefill;
  std::vector<SequenceSlice> slices;
  int32_t total_rows = 0;  // sum of row_count
};

struct TokenLogprob {
  TokenId token = 0;
  float logprob = 0.0f;  // natural log of the model's probability before temperature and truncation
  friend bool operator==(const TokenLogprob&, const TokenLogprob&) = default;
};

struct SampledToken {
  RequestKey key;
  TokenId token = 0;
  float logprob = 0.0f;                    // set when top_logprobs >= 0
  std::vector<TokenLogprob> top_logprobs;  // best first
};

// A slice that failed alone, while the others of its pass are good.
struct SliceFailure {
  RequestKey key;
  absl::Status status;  // not OK
};

// What a pass yields.
struct StepOutput {
  // One for each slice with `sample` that did not fail, in plan order.
  std::vector<SampledToken> tokens;
  std::vector<SliceFailure> failures;  // in any order; the pages written for these are undefined
};

}  // namespace baton::scheduler

#endif  // BATON_SCHEDULER_TYPES_H_
