// The product of MlaAbsorbQ for one instruction set (see foreach_isa.h; no include guard).

#include "kernels/cpu/simd_isa.h"

namespace baton::kernels::cpu::BATON_ISA {

// out[r][c] = sum over d in ascending order of q[r][d] * w[d][c], for R rows and G vectors of
// columns from `column` on, which lie in one block of scales. A scale multiplies its weight before
// the product, in F32.
template <typename W, int R, int G>
void AbsorbTile(const AbsorbHead& head, int64_t row, int64_t column) {
  const Weight& weight = *head.w;
  V sum[R][G];
  BATON_UNROLL
  for (int r = 0; r < R; ++r) {
    BATON_UNROLL
    for (int g = 0; g < G; ++g) sum[r][g] = Zero();
  }
  for (int64_t d = 0; d < head.nope; ++d) {
    const W* w = weight.w.row<const W>(head.w_row + d) + column;
    V value[G];
    BATON_UNROLL
    for (int g = 0; g < G; ++g) value[g] = Load(w + g * kLanes);
    if constexpr (sizeof(W) == 1) {
      const V scale = Set(weight.scales.row<const float>((weight.first_row + head.w_row + d) /
                                                         weight.block_n)[column / weight.block_k]);
      BATON_UNROLL
      for (int g = 0; g < G; ++g) value[g] = Mul(value[g], scale);
    }
    BATON_UNROLL
    for (int r = 0; r < R; ++r) {
      const V q = Set(head.q[(row + r) * head.q_stride + d]);
      BATON_UNROLL
      for (int g = 0; g < G; ++g) sum[r][g] = Fma(q, value[g], sum[r][g]);
    }
  }
  BATON_UNROLL
  for (int r = 0; r < R; ++r) {
    BATON_UNROLL
    for (int g = 0; g < G; ++g) {
      Store(head.out + (row + r) * head.columns + column + g * kLanes, sum[r][g]);
    }
  }
}

template <typename W, int R>
void AbsorbRows(const AbsorbHead& head, int64_t row) {
  constexpr int kGroup = 32 / kLanes;  // kv_lora is a multiple of 32
  for (int64_t column = 0; column < head.columns; column += 32) {
    AbsorbTile<W, R, kGroup>(head, row, column);
  }
}

template <typename W>
void AbsorbTyped(const AbsorbHead& head) {
  constexpr int kRows = BATON_ISA_LEVEL >= 1 ? 4 : 1;
  int64_t row = 0;
  if constexpr (kRows > 1) {
    for (; row + kRows <= head.rows; row += kRows) AbsorbRows<W, kRows>(head, row);
  }
  for (; row < head.rows; ++row) AbsorbRows<W, 1>(head, row);
}

inline void Absorb(const AbsorbHead& head) {
  switch (head.w->w.dtype) {
    case DType::kBF16:
      return AbsorbTyped<uint16_t>(head);
    case DType::kF8E4M3:
      return AbsorbTyped<uint8_t>(head);
    default:
      return AbsorbTyped<float>(head);
  }
}

}  // namespace baton::kernels::cpu::BATON_ISA
