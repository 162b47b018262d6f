#ifndef BATON_KERNELS_CUDA_CUDA_QUEUE_H_
#define BATON_KERNELS_CUDA_CUDA_QUEUE_H_

#include "kernels/op_table.h"

namespace baton::kernels::cuda {

// Fences are events of the stream, recordings are CUDA graphs.
QueueTable CudaQueue();

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_CUDA_QUEUE_H_
