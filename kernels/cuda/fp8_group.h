#ifndef BATON_KERNELS_CUDA_FP8_GROUP_H_
#define BATON_KERNELS_CUDA_FP8_GROUP_H_

// Quantization of a group of at most 128 values by one warp (QuantizeFp8 of kernels/ops.h). For
// .cu files alone.

#include <cfloat>

#include "kernels/cuda/device.h"

namespace baton::kernels::cuda {

// Lane l holds values l, l + 32, l + 64 and l + 96; what is behind the group's end is 0.
struct Fp8Group {
  static constexpr int kValues = 128;
  static constexpr int kPerLane = kValues / kWarpSize;

  float values[kPerLane];
  float scale;  // set by Scale
  bool finite;

  // All lanes together.
  BATON_DEVICE void Scale() {
    float largest = 0.0f;
    finite = true;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      finite = finite && fabsf(values[i]) <= FLT_MAX;
      largest = fmaxf(largest, fabsf(values[i]));
    }
    finite = AllLanes(finite);
    scale = WarpMax(largest) / 448.0f;
    if (scale == 0.0f) scale = 1.0f;
  }
  // A NaN keeps its sign, as where x86 divides it.
  BATON_DEVICE uint8_t Code(int i) const {
    if (finite) return FloatToE4M3(values[i] / scale);
    return values[i] != values[i] && copysignf(1.0f, values[i]) < 0.0f ? 0xFF : 0x7F;
  }
  BATON_DEVICE float StoredScale() const { return finite ? scale : NAN; }
};

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_FP8_GROUP_H_
