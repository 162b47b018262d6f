#include "kernels/cuda/quantize_fp8.h"

#include "kernels/cuda/elements.h"
#include "kernels/cuda/fp8_group.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kGroup = Fp8Group::kValues;

BATON_KERNEL(kThreads) QuantizeFp8Kernel(const QuantizeFp8Launch args) {
  const int row = BlockX();
  if (args.row_count != nullptr && row >= *args.row_count) return;  // the whole block
  const int index = BlockY() * kWarps + Warp();
  const int begin = index * kGroup;
  if (begin >= args.columns) return;  // the whole warp
  Fp8Group group;
#pragma unroll
  for (int i = 0; i < Fp8Group::kPerLane; ++i) {
    const int column = begin + i * kWarpSize + Lane();
    group.values[i] = column < args.columns ? LoadElement(args.x, row, column) : 0.0f;
  }
  group.Scale();
#pragma unroll
  for (int i = 0; i < Fp8Group::kPerLane; ++i) {
    const int column = begin + i * kWarpSize + Lane();
    if (column < args.columns) args.out[row * args.out_stride + column] = group.Code(i);
  }
  if (Lane() == 0) args.scales[row * args.scales_stride + index] = group.StoredScale();
}

}  // namespace

cudaError_t LaunchQuantizeFp8(const QuantizeFp8Launch& args, cudaStream_t stream) {
  const int groups = (args.columns + kGroup - 1) / kGroup;
  return Launch(QuantizeFp8Kernel,
                {.grid = dim3(static_cast<unsigned>(args.rows),
                              static_cast<unsigned>((groups + kWarps - 1) / kWarps)),
                 .threads = kThreads,
                 .stream = stream},
                args);
}

}  // namespace baton::kernels::cuda
