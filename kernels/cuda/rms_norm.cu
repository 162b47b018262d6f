#include "kernels/cuda/rms_norm.h"

#include "kernels/cuda/block_sum.h"
#include "kernels/cuda/elements.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// A thread keeps to its columns, so what it has added to x it reads again without a barrier.
BATON_KERNEL(kThreads) RmsNormKernel(const RmsNormLaunch args) {
  auto& shared = SharedMemory<BlockSum<kThreads>>();
  const int row = BlockX();
  float squares = 0.0f;
  for (int i = ThreadIndex(); i < args.hidden; i += kThreads) {
    float value = LoadElement(args.x, row, i);
    if (args.add.data != nullptr) {
      StoreElement(args.x, row, i, value + LoadElement(args.add, row, i));
      value = LoadElement(args.x, row, i);  // rounded to x's type
    }
    squares = fmaf(value, value, squares);
  }
  const float mean = shared.Sum(squares) / static_cast<float>(args.hidden);
  const float scale = 1.0f / sqrtf(mean + args.epsilon);
  for (int i = ThreadIndex(); i < args.hidden; i += kThreads) {
    const float value = LoadElement(args.x, row, i) * scale * LoadElement(args.weight, 0, i);
    StoreElement(args.out, row, i, value);
  }
}

}  // namespace

cudaError_t LaunchRmsNorm(const RmsNormLaunch& args, cudaStream_t stream) {
  return Launch(RmsNormKernel,
                {.grid = dim3(static_cast<unsigned>(args.rows)),
                 .threads = kThreads,
                 .shared_bytes = sizeof(BlockSum<kThreads>),
                 .stream = stream},
                args);
}

}  // namespace baton::kernels::cuda
