#ifndef BATON_KERNELS_CUDA_RMS_NORM_H_
#define BATON_KERNELS_CUDA_RMS_NORM_H_

#include "kernels/cuda/launch_args.h"

namespace baton::kernels::cuda {

struct RmsNormLaunch {
  Rows x;                // [rows, hidden]; written too when `add` is given
  Rows add;              // [rows, hidden] or null
  Rows weight;           // [1, hidden]
  Rows out;              // [rows, hidden]; may be x
  int rows = 0;          // > 0
  int hidden = 0;        // > 0
  float epsilon = 0.0f;  // >= 0
};
// A block for each row; the row is read twice, the second time from cache.
cudaError_t LaunchRmsNorm(const RmsNormLaunch& args, cudaStream_t stream);

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_RMS_NORM_H_
