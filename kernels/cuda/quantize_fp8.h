#ifndef BATON_KERNELS_CUDA_QUANTIZE_FP8_H_
#define BATON_KERNELS_CUDA_QUANTIZE_FP8_H_

#include <cstdint>

#include "kernels/cuda/launch_args.h"

namespace baton::kernels::cuda {

struct QuantizeFp8Launch {
  Rows x;                  // [rows, columns]
  uint8_t* out = nullptr;  // E4M3 [rows, columns], rows `out_stride` apart
  int64_t out_stride = 0;
  float* scales = nullptr;  // [rows, ceil(columns / 128)], rows `scales_stride` apart
  int64_t scales_stride = 0;
  const int32_t* row_count = nullptr;  // of rows, on the device; null: all
  int rows = 0;                        // > 0
  int columns = 0;                     // > 0
};
// A warp for each group of 128.
cudaError_t LaunchQuantizeFp8(const QuantizeFp8Launch& args, cudaStream_t stream);

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_QUANTIZE_FP8_H_
