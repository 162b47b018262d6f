#ifndef BATON_KERNELS_CUDA_PAD_ROWS_H_
#define BATON_KERNELS_CUDA_PAD_ROWS_H_

// A copy of rows, with rows of zeros behind them.

#include <cstdint>

#include "kernels/cuda/launch_args.h"

namespace baton::kernels::cuda {

struct PadRowsLaunch {
  const void* from = nullptr;  // [rows, columns], rows from_stride elements apart
  int64_t from_stride = 0;
  void* to = nullptr;  // [padded_rows, columns]
  int64_t to_stride = 0;
  int rows = 0;
  int padded_rows = 0;  // >= rows, > 0
  int columns = 0;
  int bytes = 4;  // of an element: 2 or 4
};
cudaError_t LaunchPadRows(const PadRowsLaunch& args, cudaStream_t stream);

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_PAD_ROWS_H_
