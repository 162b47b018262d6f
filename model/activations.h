#ifndef BATON_MODEL_ACTIVATIONS_H_
#define BATON_MODEL_ACTIVATIONS_H_

// Every intermediate array of a forward pass, laid out once in one allocation for the largest pass,
// so that a pass allocates nothing. T rows of a pass, S sequences, H hidden, k choices of a row, E
// experts, V vocabulary.

#include <cstdint>

#include "kernels/tensor.h"
#include "model/config.h"

namespace baton::model {

struct PassLimits {
  int32_t max_rows = 0;            // T and S at most
  int32_t max_sequence_pages = 0;  // pages of one sequence at most
  int32_t max_logit_rows = 0;      // rows that the head takes at once
  kernels::DType act = kernels::DType::kBF16;
};

struct Activations {
  using View = kernels::TensorView;

  // The batch, as the ops read it.
  View ids;          // I32 [T]
  View positions;    // I32 [T]
  View slots;        // I64 [T]
  View query_start;  // I32 [max_rows + 1], used up to S + 1
  View context_len;  // I32 [max_rows], used up to S
  View page_table;   // I32 [max_rows * max_sequence_pages], viewed as [S, pages]

  View hidden;  // F32 [T, H], the residual stream
  View normed;  // act [T, H]

  View q_a;         // act [T, q_lora]; absent without
  View q;           // act [T, heads, nope + rope]
  View kv_a;        // act [T, kv_lora + rope]
  View q_latent;    // act [T, heads, kv_lora]; absorbed form only
  View out_latent;  // act [T, heads, kv_lora]; absorbed form only
  View heads_out;   // act [T, heads, v]

  View mlp_inner;     // act [T, intermediate]
  View shared_inner;  // act [T, shared intermediate]; the memory of mlp_inner; absent without
                      // shared experts
  View shared_out;    // act [T, H]; absent without shared experts

  View experts;         // I32 [T, k]
  View expert_weights;  // F32 [T, k]
  View expert_rows;     // I32 [T, k]
  View row_tokens;      // I32 [T * k]
  View expert_offsets;  // I32 [E + 1]
  View expert_inner;    // act [T * k, moe intermediate]
  View expert_out;      // act [T * k, H]

  View head_in;     // act [max_logit_rows, H]
  View logits;      // F32 [max_logit_rows, V]
  View logit_mask;  // I32 [max_logit_rows, ceil(V / 32)]

  // These arrays cut to the first `rows` rows.
  Activations ForRows(int64_t rows) const;
};

// Places all arrays behind `base` (64-byte aligned) and sets `bytes` to their end. With base null
// only `bytes` means anything.
Activations LayOutActivations(const ModelConfig& config, const PassLimits& limits, void* base,
                              int64_t& bytes);

}  // namespace baton::model

#endif  // BATON_MODEL_ACTIVATIONS_H_
