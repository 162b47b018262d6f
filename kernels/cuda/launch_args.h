#ifndef BATON_KERNELS_CUDA_LAUNCH_ARGS_H_
#define BATON_KERNELS_CUDA_LAUNCH_ARGS_H_

// Plain structs that arguments of kernels are made of. Both sides include it, so nothing here is of
// the device's or of the ops' headers.

#include <cuda_runtime_api.h>

#include <cstdint>

namespace baton::kernels::cuda {

// A [rows, columns] tensor of F32 (bf16 false) or BF16; rows lie `stride` elements apart.
struct Rows {
  void* data = nullptr;
  int64_t stride = 0;
  bool bf16 = false;
};

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_LAUNCH_ARGS_H_
