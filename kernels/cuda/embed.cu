#include "kernels/cuda/embed.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/elements.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 256;

BATON_KERNEL(kThreads) EmbedKernel(const EmbedLaunch args) {
  const int row = BlockX();
  const int32_t id = args.ids[row];
  for (int i = ThreadIndex(); i < args.hidden; i += kThreads) {
    args.out[row * args.out_stride + i] = LoadElement(args.table, id, i);
  }
}

}  // namespace

cudaError_t LaunchEmbed(const EmbedLaunch& args, cudaStream_t stream) {
  return Launch(
      EmbedKernel,
      {.grid = dim3(static_cast<unsigned>(args.rows)), .threads = kThreads, .stream = stream},
      args);
}

}  // namespace baton::kernels::cuda
