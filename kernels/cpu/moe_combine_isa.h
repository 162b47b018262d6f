// MoeCombine's inner loop for one instruction set (see foreach_isa.h; no include guard).

#include "kernels/cpu/simd_isa.h"

namespace baton::kernels::cpu::BATON_ISA {

template <typename Y, typename S>
void CombineTyped(const CombineRow& row, int64_t n) {
  ForVectors(n, [&](int64_t, const auto& load, const auto& store) {
    V sum = Zero();
    for (int c = 0; c < row.count; ++c) {
      sum = Fma(Set(row.weights[c]), load(static_cast<const Y*>(row.y[c])), sum);
    }
    if (row.shared != nullptr) sum = Add(sum, load(static_cast<const S*>(row.shared)));
    if (row.accumulate) sum = Add(load(static_cast<const float*>(row.out)), sum);
    store(row.out, sum);
  });
}

inline void Combine(const CombineRow& row, int64_t n) {
  if (row.y_bf16 && row.shared_bf16) return CombineTyped<uint16_t, uint16_t>(row, n);
  if (row.y_bf16) return CombineTyped<uint16_t, float>(row, n);
  if (row.shared_bf16) return CombineTyped<float, uint16_t>(row, n);
  return CombineTyped<float, float>(row, n);
}

}  // namespace baton::kernels::cpu::BATON_ISA
