// A thread for each scale, neighbours in neighbouring rows: what products need is one scale of each
// row beside the other. 4096 rows of 56 scales are 0.9 MB, so the time is that of a launch.

#include "kernels/cuda/device.h"
#include "kernels/cuda/place_scales.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 128;

BATON_KERNEL(kThreads) PlaceScalesKernel(const PlaceScalesLaunch args) {
  const int row = BlockX() * kThreads + ThreadIndex(), column = BlockY();
  if (row >= args.padded_rows) return;
  const bool copied = row < args.rows && column < args.columns;
  args.to[row * args.to_row + column * args.to_column] =
      copied ? args.from[row * args.from_row + column * args.from_column] : 0.0f;
}

}  // namespace

cudaError_t LaunchPlaceScales(const PlaceScalesLaunch& args, cudaStream_t stream) {
  const int blocks = (args.padded_rows + kThreads - 1) / kThreads;
  return Launch(
      PlaceScalesKernel,
      {.grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(args.padded_columns)),
       .threads = kThreads,
       .stream = stream},
      args);
}

}  // namespace baton::kernels::cuda
