#ifndef BATON_MODEL_ACTIVATIONS_H_
#define BATON_MODEL_ACTIVATIONS_H_

// Every intermediate array of a forward pass, laid out once in one allocation for the largest pass,
// so that a pass allocates nothing. T rows of a pass, S sequences, H hidden, k choices of a row, E
// experts, V vocabulary.
//
// A rank of a tensor-parallel group (rank_group.h) has "own" rows, O of the pass's T, and some of
// the heads. Without such a group own rows are all rows, and the arrays that gather from other
// ranks are the arrays that would be gathered.

#include <cstdint>

#include "kernels/tensor.h"
#include "model/config.h"
#include "model/rank_group.h"

namespace baton::model {

struct PassLimits {
  int32_t max_rows = 0;            // T and S at most
  int32_t max_sequence_pages = 0;  // pages of one sequence at most
  int32_t max_logit_rows = 0;      // rows that the head takes at once
  kernels::DType act = kernels::DType::kBF16;
  int32_t row_ranks = 1;  // among which the rows are split
  int32_t heads = 0;      // of this rank; 0: all
  bool fp8 = false;       // rows may be rounded to E4M3 (linear_input.h)
};

// Room for rows in E4M3 with the scales of their groups of 128, whatever their shape.
struct CodeRoom {
  kernels::TensorView codes;   // F8E4M3 [most codes]
  kernels::TensorView scales;  // F32 [most scales]
};

struct Activations {
  using View = kernels::TensorView;

  // The batch, as the ops read it.
  View ids;          // I32 [T]
  View positions;    // I32 [T]
  View slots;        // I64 [T]
  View query_start;  // I32 [max_rows + 2], used up to S + 1
  View context_len;  // I32 [max_rows], used up to S
  View page_table;   // I32 [max_rows * max_sequence_pages], viewed as [S, pages]

  View own_ids;        // I32 [O]
  View own_positions;  // I32 [O]
  View hidden;         // F32 [O, H], the residual stream
  View picked;         // F32 [O, H], that of the rows that go on when others stop; absent in a
                       // group that splits rows
  View normed;         // act [O, H]

  CodeRoom normed_codes;  // normed in E4M3
  CodeRoom codes;         // any other input of a product; both absent unless PassLimits::fp8

  View own_q_a;     // act [O, q_lora]; absent without
  View own_kv_a;    // act [O, kv_lora + rope]
  View q_a;         // act [T, q_lora], or [T, H] (what q is made of) without
  View kv_a;        // act [T, kv_lora + rope]
  View q;           // act [T, heads, nope + rope]; the rank's heads, as in the next three
  View q_latent;    // act [T, heads, kv_lora]; absorbed form only
  View out_latent;  // act [T, heads, kv_lora]; absorbed form only
  View heads_out;   // act [T, heads, v]
  View received;    // act [O * all heads * v]: head outputs as they come from the ranks; absent
                    // without a group
  View own_heads;   // act [O, all heads, v]

  View mlp_inner;     // act [O, intermediate]
  View shared_inner;  // act [O, shared intermediate]; the memory of mlp_inner; absent without
                      // shared experts
  View shared_out;    // act [O, H]; absent without shared experts

  View experts;         // I32 [O, k]
  View physical;        // I32 [O, k]; groups only
  View expert_weights;  // F32 [O, k]
  View expert_rows;     // I32 [O, k]
  View row_tokens;      // I32 [O * k]
  View expert_offsets;  // I32 [E + 1]
  View expert_inner;    // act [O * k, moe intermediate]
  View expert_out;      // act [O * k, H]

  View head_sent;   // F32 [max_logit_rows, H]: rows for the head on their way to rank 0
  View head_index;  // I32 [max_logit_rows]: which of this rank's rows those are
  View head_rows;   // F32 [max_logit_rows, H]: as they came; all three absent without a group
  View head_in;     // act [max_logit_rows, H]
  View logits;      // F32 [max_logit_rows, V]
  View logit_mask;  // I32 [max_logit_rows, ceil(V / 32)]

  // These arrays cut to a pass of `rows` rows, of which `own` are the rank's.
  Activations ForRows(int64_t rows, const Share& own) const;

  // What is left behind the first of two parts of a pass that has `rows` rows of `sequences`
  // sequences and `page_entries` entries of the page table. Of what only ranks on their own or
  // those that split rows use, nothing.
  Activations Behind(int64_t rows, int64_t sequences, int64_t page_entries) const;
};

// Places all arrays behind `base` (64-byte aligned) and sets `bytes` to their end. With base null
// only `bytes` means anything.
Activations LayOutActivations(const ModelConfig& config, const PassLimits& limits, void* base,
                              int64_t& bytes);

}  // namespace baton::model

#endif  // BATON_MODEL_ACTIVATIONS_H_
