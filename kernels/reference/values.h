#ifndef BATON_KERNELS_REFERENCE_VALUES_H_
#define BATON_KERNELS_REFERENCE_VALUES_H_

// Element access of the reference backend: any float dtype as double. `column` counts inside one
// row of the first dimension.

#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/numeric.h"
#include "kernels/ops.h"

namespace baton::kernels::reference {

inline double At(const TensorView& view, int64_t row, int64_t column) {
  switch (view.dtype) {
    case DType::kF32:
      return view.row<const float>(row)[column];
    case DType::kBF16:
      return Bf16ToF32(view.row<const uint16_t>(row)[column]);
    case DType::kF8E4M3:
      return F8E4M3ToF32(view.row<const uint8_t>(row)[column]);
    default:
      BATON_CHECK(false);
  }
  return 0.0;
}

inline void Put(const TensorView& view, int64_t row, int64_t column, double value) {
  const float narrow = static_cast<float>(value);
  switch (view.dtype) {
    case DType::kF32:
      view.row<float>(row)[column] = narrow;
      return;
    case DType::kBF16:
      view.row<uint16_t>(row)[column] = F32ToBf16(narrow);
      return;
    default:
      BATON_CHECK(false);
  }
}

inline double At(const Weight& weight, int64_t n, int64_t k) {
  const double value = At(weight.w, n, k);
  if (weight.scales.absent()) return value;
  return value * At(weight.scales, (weight.first_row + n) / weight.block_n, k / weight.block_k);
}

// Row t of x times row n of the weight. `scales` are those of an E4M3 x, else absent.
inline double Dot(const TensorView& x, int64_t t, const Weight& weight, int64_t n,
                  const TensorView& scales = {}) {
  double sum = 0.0;
  for (int64_t k = 0; k < weight.w.dim(1); ++k) {
    const double value = At(x, t, k) * (scales.absent() ? 1.0 : At(scales, t, k / 128));
    sum += value * At(weight, n, k);
  }
  return sum;
}

inline double Silu(double z) { return z / (1.0 + std::exp(-z)); }

}  // namespace baton::kernels::reference

#endif  // BATON_KERNELS_REFERENCE_VALUES_H_
