#ifndef BATON_KERNELS_CUDA_ROPE_AND_PAGE_H_
#define BATON_KERNELS_CUDA_ROPE_AND_PAGE_H_

#include <cstdint>

#include "kernels/cuda/launch_args.h"
#include "kernels/cuda/paged.h"

namespace baton::kernels::cuda {

struct RopeAndPageLaunch {
  Rows q;     // or null: [rows * heads, head] without gaps; the last `rope` values are rotated
  Rows kv_a;  // or null: [rows, kv_lora + rope]
  Rows norm;  // [1, kv_lora]
  const float* cos = nullptr;  // [max_position, rope / 2]
  const float* sin = nullptr;
  const int32_t* positions = nullptr;  // [rows]
  const int64_t* slots = nullptr;      // [rows]; negative: not written
  Pages pages;
  int rows = 0;  // > 0
  int heads = 0;
  int head = 0;
  float epsilon = 0.0f;
};
// A block for each row.
cudaError_t LaunchRopeAndPage(const RopeAndPageLaunch& args, cudaStream_t stream);

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_ROPE_AND_PAGE_H_
