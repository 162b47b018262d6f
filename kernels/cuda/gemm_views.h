#ifndef BATON_KERNELS_CUDA_GEMM_VIEWS_H_
#define BATON_KERNELS_CUDA_GEMM_VIEWS_H_

// From weights as ops have them to those of the products. For the host's side (.cc) alone.

#include <cstdint>

#include "kernels/cuda/gemm.h"
#include "kernels/ops.h"

namespace baton::kernels::cuda {

inline GemmType GemmTypeOf(DType dtype) {
  if (dtype == DType::kF32) return GemmType::kF32;
  return dtype == DType::kBF16 ? GemmType::kBf16 : GemmType::kE4M3;
}

inline GemmWeight GemmWeightOf(const Weight& weight) {
  if (weight.absent()) return {};
  return {.data = weight.w.data,
          .scales = weight.scales.absent() ? nullptr : weight.scales.as<const float>(),
          .stride = weight.w.strides[0],
          .first_row = weight.first_row};
}

// Whether rows of the weight begin at multiples of 16 bytes; an absent one has none.
inline bool HasAlignedRows(const Weight& weight) {
  if (weight.absent()) return true;
  const auto data = reinterpret_cast<uintptr_t>(weight.w.data);
  const auto row = static_cast<uintptr_t>(weight.w.strides[0]) * DTypeBytes(weight.w.dtype);
  return (data | row) % 16 == 0;
}

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_GEMM_VIEWS_H_
