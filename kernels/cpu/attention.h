#ifndef BATON_KERNELS_CPU_ATTENTION_H_
#define BATON_KERNELS_CPU_ATTENTION_H_

// The inner steps that both forms of attention share, at a given ISA level. Keys come in blocks of
// kKeyBlock at absolute positions; a row's state after a block depends on its own scores and values
// only.

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/ops.h"

namespace baton::kernels::cpu {

inline constexpr int kKeyBlock = 64;

// Online softmax (Milakov and Gimelshein 2018) of some rows: row i has maximum best[i], sum of
// exponentials sum[i] and weighted values acc[i * width ...]. A row that has seen no key has best =
// -inf, sum = 0, acc = 0.
struct AttentionState {
  float* best = nullptr;
  float* sum = nullptr;
  float* acc = nullptr;
  int64_t width = 0;  // a multiple of 16

  AttentionState From(int64_t row) const {
    return {best + row, sum + row, acc + row * width, width};
  }
};
void ClearState(const AttentionState& state, int64_t rows);

// Multi-head form, one head, one block of keys.
struct PrefillBlock {
  const float* q = nullptr;  // [rows, depth], q_stride apart
  int64_t q_stride = 0, rows = 0, depth = 0;
  const float* keys = nullptr;    // [depth, kKeyBlock]: transposed
  const float* values = nullptr;  // [kKeyBlock, state.width]
  int64_t first_visible =
      0;  // row r sees the first first_visible + r keys of the block (may be <= 0, or more)
  float scale = 0.0f;
  AttentionState state;     // of the rows
  float* scores = nullptr;  // 4 * kKeyBlock floats of this thread
};
void AttendPrefill(IsaLevel isa, const PrefillBlock& block);

// Absorbed form, `items` heads of one row, one block of keys: scores [items, kKeyBlock] (raw
// products; overwritten), of which the first `visible` (1..kKeyBlock) count; values [kKeyBlock],
// value_stride apart.
struct DecodeBlock {
  float* scores = nullptr;
  int64_t items = 0, visible = 0;
  const float* values = nullptr;
  int64_t value_stride = 0;
  float scale = 0.0f;
  AttentionState state;  // of the items
};
void AttendDecode(IsaLevel isa, const DecodeBlock& block);

// Merges the state of later keys into that of earlier ones.
void FoldState(IsaLevel isa, const AttentionState& part, int64_t rows, const AttentionState& into);
// acc / sum, in place.
void FinishState(IsaLevel isa, const AttentionState& state, int64_t rows);

// Entry of one token as F32: latent [kv_lora], then rotary [rope].
void WidenEntry(IsaLevel isa, const KvPages& pages, const uint8_t* entry, float* latent,
                float* rotary);

}  // namespace baton::kernels::cpu

#endif  // BATON_KERNELS_CPU_ATTENTION_H_
