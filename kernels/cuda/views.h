#ifndef BATON_KERNELS_CUDA_VIEWS_H_
#define BATON_KERNELS_CUDA_VIEWS_H_

// From the arguments of ops to those of kernels. For the host's side (.cc) alone.

#include "kernels/cuda/launch_args.h"
#include "kernels/tensor.h"

namespace baton::kernels::cuda {

// An F32 or BF16 [rows, columns] view, or a dense one of any rank taken as its last dimension's
// rows; absent: null.
inline Rows RowsOf(const TensorView& view) {
  if (view.absent()) return {};
  const int last = view.rank - 1;
  return {.data = view.data,
          .stride = view.rank == 2 ? view.strides[0] : view.shape[static_cast<size_t>(last)],
          .bf16 = view.dtype == DType::kBF16};
}

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_VIEWS_H_
