#ifndef BATON_KERNELS_CUDA_EMBED_H_
#define BATON_KERNELS_CUDA_EMBED_H_

#include <cstdint>

#include "kernels/cuda/launch_args.h"

namespace baton::kernels::cuda {

struct EmbedLaunch {
  const int32_t* ids = nullptr;  // [rows]
  Rows table;
  float* out = nullptr;  // rows `out_stride` apart
  int64_t out_stride = 0;
  int rows = 0;  // > 0
  int hidden = 0;
};
// A block for each row. Bytes moved: rows * hidden * (table's element + 4).
cudaError_t LaunchEmbed(const EmbedLaunch& args, cudaStream_t stream);

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_EMBED_H_
