#ifndef BATON_TRANSPORT_NCCL_CUDA_BUFFERS_H_
#define BATON_TRANSPORT_NCCL_CUDA_BUFFERS_H_

#include <memory>

#include "transport/group/buffer_ops.h"
#include "transport/nccl/nccl_group.h"

namespace baton::transport {

// OK, RESOURCE_EXHAUSTED (out of memory) or INTERNAL, with `what` and CUDA's own words.
absl::Status RuntimeStatus(cudaError_t error, const char* what);

// Of a GPU's memory, on `stream`.
std::unique_ptr<BufferOps> MakeCudaBuffers(int gpu, cudaStream_t stream, SumOnGpu sum);

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_NCCL_CUDA_BUFFERS_H_
