#include "kernels/cuda/logits_mask.h"

#include "kernels/cuda/device.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 8;
constexpr int kPerBlock = kThreads * kPerThread;

BATON_KERNEL(kThreads) LogitsMaskKernel(const LogitsMaskLaunch args) {
  const int64_t row = BlockX();
  const int begin = BlockY() * kPerBlock + ThreadIndex();
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int token = begin + i * kThreads;
    if (token >= args.vocabulary) break;
    const uint32_t word = args.mask[row * args.mask_stride + token / 32];
    if ((word >> (token % 32) & 1u) == 0) {
      args.logits[row * args.logits_stride + token] = -INFINITY;
    }
  }
}

}  // namespace

cudaError_t LaunchLogitsMask(const LogitsMaskLaunch& args, cudaStream_t stream) {
  const int blocks = (args.vocabulary + kPerBlock - 1) / kPerBlock;
  return Launch(LogitsMaskKernel,
                {.grid = dim3(static_cast<unsigned>(args.rows), static_cast<unsigned>(blocks)),
                 .threads = kThreads,
                 .stream = stream},
                args);
}

}  // namespace baton::kernels::cuda
