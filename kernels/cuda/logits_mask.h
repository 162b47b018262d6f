#ifndef BATON_KERNELS_CUDA_LOGITS_MASK_H_
#define BATON_KERNELS_CUDA_LOGITS_MASK_H_

#include <cuda_runtime_api.h>

#include <cstdint>

namespace baton::kernels::cuda {

struct LogitsMaskLaunch {
  float* logits = nullptr;  // [rows, vocabulary], rows `logits_stride` apart; in and out
  int64_t logits_stride = 0;
  const uint32_t* mask = nullptr;  // [rows, ceil(vocabulary / 32)], rows `mask_stride` apart
  int64_t mask_stride = 0;
  int rows = 0;        // > 0
  int vocabulary = 0;  // > 0
};
// A warp for each word of the mask. Only what is forbidden is written.
cudaError_t LaunchLogitsMask(const LogitsMaskLaunch& args, cudaStream_t stream);

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_LOGITS_MASK_H_
