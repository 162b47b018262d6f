// Moves bytes: a block for each row. Rows of a padded product are at most 127, so the time of these
// copies is that of a launch.

#include "kernels/cuda/device.h"
#include "kernels/cuda/pad_rows.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 256;

template <typename T>
BATON_KERNEL(kThreads)
PadRowsKernel(const PadRowsLaunch args) {
  const int row = BlockX();
  const T* const from = static_cast<const T*>(args.from) + row * args.from_stride;
  T* const to = static_cast<T*>(args.to) + row * args.to_stride;
  const bool copied = row < args.rows;
  for (int i = ThreadIndex(); i < args.columns; i += kThreads) to[i] = copied ? from[i] : T{0};
}

}  // namespace

cudaError_t LaunchPadRows(const PadRowsLaunch& args, cudaStream_t stream) {
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>(args.padded_rows)), .threads = kThreads, .stream = stream};
  return args.bytes == 2 ? Launch(PadRowsKernel<uint16_t>, shape, args)
                         : Launch(PadRowsKernel<uint32_t>, shape, args);
}

}  // namespace baton::kernels::cuda
