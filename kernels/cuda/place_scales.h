#ifndef BATON_KERNELS_CUDA_PLACE_SCALES_H_
#define BATON_KERNELS_CUDA_PLACE_SCALES_H_

// A copy of a matrix of scales into another layout, with zeros behind its rows and columns.

#include <cstdint>

#include "kernels/cuda/launch_args.h"

namespace baton::kernels::cuda {

struct PlaceScalesLaunch {
  const float* from = nullptr;  // [rows, columns]; elements from_row and from_column apart
  int64_t from_row = 0, from_column = 1;
  float* to = nullptr;  // [padded_rows, padded_columns]
  int64_t to_row = 0, to_column = 1;
  int rows = 0, columns = 0;
  int padded_rows = 0;     // >= rows, > 0
  int padded_columns = 0;  // >= columns, 1 .. 65535
};
cudaError_t LaunchPlaceScales(const PlaceScalesLaunch& args, cudaStream_t stream);

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_PLACE_SCALES_H_
