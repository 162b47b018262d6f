#ifndef BATON_KERNELS_CUDA_ELEMENTS_H_
#define BATON_KERNELS_CUDA_ELEMENTS_H_

// How kernels read and write rows of float or BF16 values. For .cu files alone.

#include <cstdint>

#include "kernels/cuda/device.h"
#include "kernels/cuda/launch_args.h"

namespace baton::kernels::cuda {

BATON_DEVICE int Least(int a, int b) { return a < b ? a : b; }

BATON_DEVICE float LoadElement(const Rows& rows, int64_t row, int64_t column) {
  const int64_t at = row * rows.stride + column;
  return rows.bf16 ? Bf16ToFloat(static_cast<const uint16_t*>(rows.data)[at])
                   : static_cast<const float*>(rows.data)[at];
}

BATON_DEVICE void StoreElement(const Rows& rows, int64_t row, int64_t column, float value) {
  const int64_t at = row * rows.stride + column;
  if (rows.bf16) {
    static_cast<uint16_t*>(rows.data)[at] = FloatToBf16(value);
  } else {
    static_cast<float*>(rows.data)[at] = value;
  }
}

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_ELEMENTS_H_
