#include "kernels/cuda/copy_rows.h"

#include "kernels/cuda/device.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 256;

template <typename Word>
BATON_KERNEL(kThreads)
CopyRowsKernel(const CopyRowsLaunch args) {
  const int row = BlockX();
  const int64_t source = args.index == nullptr ? row : args.index[row];
  if (source < 0) return;
  const Word* const from = reinterpret_cast<const Word*>(args.from + source * args.from_stride);
  Word* const to = reinterpret_cast<Word*>(args.to + row * args.to_stride);
  const int64_t words = args.row_bytes / static_cast<int64_t>(sizeof(Word));
  for (int64_t i = ThreadIndex(); i < words; i += kThreads) to[i] = from[i];
}

}  // namespace

cudaError_t LaunchCopyRows(const CopyRowsLaunch& args, cudaStream_t stream) {
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>(args.rows)), .threads = kThreads, .stream = stream};
  const int word = WordBytes(
      {AddressOf(args.from), args.from_stride, AddressOf(args.to), args.to_stride, args.row_bytes});
  if (word == 16) return Launch(CopyRowsKernel<uint4>, shape, args);
  if (word == 4) return Launch(CopyRowsKernel<uint32_t>, shape, args);
  return Launch(CopyRowsKernel<uint8_t>, shape, args);
}

}  // namespace baton::kernels::cuda
