#ifndef BATON_TRANSPORT_NCCL_CUDA_BUFFERS_H_
#define BATON_TRANSPORT_NCCL_CUDA_BUFFERS_H_

#include <memory>

#include "transport/group/buffer_ops.h"
#include "transport/nccl/nccl_group.h"

namespace baton::transport {

// Of a GPU's memory, on `stream`.
std::unique_ptr<BufferOps> MakeCudaBuffers(int gpu, cudaStream_t stream, SumOnGpu sum);

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_NCCL_CUDA_BUFFERS_H_
