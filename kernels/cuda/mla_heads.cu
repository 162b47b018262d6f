// Queries of each head to latents by multiply-adds of F32.

#include "kernels/cuda/mla_heads.h"

#include "kernels/cuda/elements.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = 8;  // that share a weight once it is loaded

BATON_DEVICE float LoadWeight(const MlaHeadsLaunch& args, int64_t n, int k) {
  const int64_t at = n * args.kv_b.stride + k;
  if (args.type == GemmType::kF32) return static_cast<const float*>(args.kv_b.data)[at];
  if (args.type == GemmType::kBf16) {
    return Bf16ToFloat(static_cast<const uint16_t*>(args.kv_b.data)[at]);
  }
  const int64_t scales = (args.kv_lora + args.block_k - 1) / args.block_k;
  return E4M3ToFloat(static_cast<const uint8_t*>(args.kv_b.data)[at]) *
         args.kv_b.scales[(args.kv_b.first_row + n) / args.block_n * scales + k / args.block_k];
}

// A thread has one column of kRows rows; its sums ascend.
BATON_KERNEL(kThreads) MlaHeadsKernel(const MlaHeadsLaunch args) {
  const int row = BlockX() * kRows, head = BlockY();
  const int rows = args.rows - row < kRows ? args.rows - row : kRows;
  const int column = BlockZ() * kThreads + ThreadIndex();
  if (column >= args.kv_lora) return;
  float sums[kRows] = {};
  for (int i = 0; i < args.nope; ++i) {
    const float weight = LoadWeight(args, static_cast<int64_t>(head) * args.per_head + i, column);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) continue;
      const int64_t item = static_cast<int64_t>(row + r) * args.heads + head;
      sums[r] = fmaf(LoadElement(args.q, item, i), weight, sums[r]);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) continue;
    StoreElement(args.out, static_cast<int64_t>(row + r) * args.heads + head, column, sums[r]);
  }
}

}  // namespace

cudaError_t LaunchMlaHeadsPlain(const MlaHeadsLaunch& args, cudaStream_t stream) {
  return Launch(MlaHeadsKernel,
                {.grid = dim3(static_cast<unsigned>((args.rows + kRows - 1) / kRows),
                              static_cast<unsigned>(args.heads),
                              static_cast<unsigned>((args.kv_lora + kThreads - 1) / kThreads)),
                 .threads = kThreads,
                 .stream = stream},
                args);
}

}  // namespace baton::kernels::cuda
