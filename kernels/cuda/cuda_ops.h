#ifndef BATON_KERNELS_CUDA_CUDA_OPS_H_
#define BATON_KERNELS_CUDA_CUDA_OPS_H_

// The backend's ops: what kernels/ops.h says, on the GPU.

#include "kernels/op_list.h"
#include "kernels/ops.h"

namespace baton::kernels::cuda {

BATON_KERNEL_OPS(BATON_DECLARE_OP)

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_CUDA_OPS_H_
