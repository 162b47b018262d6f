#ifndef BATON_KERNELS_CUDA_CUDA_STATUS_H_
#define BATON_KERNELS_CUDA_CUDA_STATUS_H_

#include <cuda_runtime_api.h>

#include "absl/status/status.h"

namespace baton::kernels::cuda {

// OK, RESOURCE_EXHAUSTED (out of memory), or INTERNAL for what should not happen; names `what` and
// CUDA's own words.
absl::Status CudaStatus(cudaError_t error, const char* what);

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_CUDA_STATUS_H_
