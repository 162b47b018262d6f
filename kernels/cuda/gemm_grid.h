#ifndef BATON_KERNELS_CUDA_GEMM_GRID_H_
#define BATON_KERNELS_CUDA_GEMM_GRID_H_

#include <algorithm>

#include "kernels/cuda/gemm.h"

namespace baton::kernels::cuda {

// Row tiles first, so that blocks that share a piece of w run side by side; as many as there can be
// with the rows shared out over the groups in the worst way.
inline dim3 GemmGrid(const GemmLaunch& args, int tile_rows, int tile_columns) {
  const int ragged = args.offsets == nullptr ? 1 : std::min(args.groups, args.rows);
  const int64_t tiles = (args.rows + int64_t{ragged} * (tile_rows - 1)) / tile_rows;
  return dim3(static_cast<unsigned>(tiles),
              static_cast<unsigned>((args.n + tile_columns - 1) / tile_columns),
              static_cast<unsigned>(args.batch));
}

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_GEMM_GRID_H_
