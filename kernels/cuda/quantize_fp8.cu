#include "kernels/cuda/quantize_fp8.h"

#include <cfloat>

#include "kernels/cuda/elements.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kGroup = 128;
constexpr int kPerLane = kGroup / kWarpSize;

// A NaN keeps its sign, as where x86 divides it.
BATON_DEVICE uint8_t NanCode(float value) {
  return value != value && copysignf(1.0f, value) < 0.0f ? 0xFF : 0x7F;
}

BATON_KERNEL(kThreads) QuantizeFp8Kernel(const QuantizeFp8Launch args) {
  const int row = BlockX();
  const int group = BlockY() * kWarps + Warp();
  const int begin = group * kGroup;
  if (begin >= args.columns) return;  // the whole warp
  float values[kPerLane];
  float largest = 0.0f;
  bool finite = true;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int column = begin + i * kWarpSize + Lane();
    values[i] = column < args.columns ? LoadElement(args.x, row, column) : 0.0f;
    finite = finite && fabsf(values[i]) <= FLT_MAX;
    largest = fmaxf(largest, fabsf(values[i]));
  }
  finite = AllLanes(finite);
  largest = WarpMax(largest);
  float scale = largest / 448.0f;
  if (scale == 0.0f) scale = 1.0f;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int column = begin + i * kWarpSize + Lane();
    if (column >= args.columns) continue;
    args.out[row * args.out_stride + column] =
        finite ? FloatToE4M3(values[i] / scale) : NanCode(values[i]);
  }
  if (Lane() == 0) {
    args.scales[row * args.scales_stride + group] = finite ? scale : NAN;
  }
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
