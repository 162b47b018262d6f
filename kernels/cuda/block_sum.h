#ifndef BATON_KERNELS_CUDA_BLOCK_SUM_H_
#define BATON_KERNELS_CUDA_BLOCK_SUM_H_

// Sums over the threads of a block in one fixed order: lanes by a butterfly, warps ascending. For
// .cu files alone.

#include "kernels/cuda/device.h"

namespace baton::kernels::cuda {

// Lies in shared memory. All threads call together, and each gets the sum. A second sum in the same
// kernel needs a barrier before it, or a BlockSum of its own.
template <int kThreads>
struct BlockSum {
  float warps[kThreads / kWarpSize];

  BATON_DEVICE float Sum(float value) {
    value = WarpSum(value);
    if (Lane() == 0) warps[Warp()] = value;
    SyncBlock();
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kThreads / kWarpSize; ++i) sum += warps[i];
    return sum;
  }
};

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_BLOCK_SUM_H_
