// Pairs grouped by expert, in order, without atomics: a warp walks one stretch of the pairs twice,
// first counting, then placing by the ranks that a ballot gives.

#include "kernels/cuda/device.h"
#include "kernels/cuda/elements.h"
#include "kernels/cuda/moe.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarpSize;

struct Counts {
  int32_t before[kWarps];  // pairs of lower experts in a warp's stretch
  int32_t own[kWarps];     // pairs of the block's expert
};

BATON_DEVICE int CountBits(uint32_t bits) {
  bits = bits - ((bits >> 1) & 0x55555555u);
  bits = (bits & 0x33333333u) + ((bits >> 2) & 0x33333333u);
  return static_cast<int>((((bits + (bits >> 4)) & 0x0F0F0F0Fu) * 0x01010101u) >> 24);
}

// Id among the experts here, or -1; of pairs at and behind `end` too.
BATON_DEVICE int LocalExpert(const MoePermuteLaunch& args, int pair, int end) {
  if (pair >= end) return -1;
  const int64_t expert = int64_t{args.experts[pair]} - args.first_expert;
  return expert >= 0 && expert < args.local ? static_cast<int>(expert) : -1;
}

// Block `local` has no expert: it counts all pairs and marks what belongs to none.
BATON_KERNEL(kThreads) MoePermuteKernel(const MoePermuteLaunch args) {
  auto& counts = SharedMemory<Counts>();
  const int expert = BlockX();
  const bool placing = expert < args.local;
  const int stretch =
      (args.pairs / kWarps + kWarpSize) / kWarpSize * kWarpSize;  // kWarps of them cover all
  const int begin = Least(args.pairs, Warp() * stretch);
  const int end = Least(args.pairs, begin + stretch);
  int before = 0, own = 0;
  for (int pair = begin + Lane(); pair < end; pair += kWarpSize) {
    const int local = LocalExpert(args, pair, end);
    before += local >= 0 && local < expert ? 1 : 0;
    own += local == expert ? 1 : 0;
    if (!placing && local < 0) args.rows[pair] = -1;
  }
  before = WarpSum(before);
  own = WarpSum(own);
  if (Lane() == 0) {
    counts.before[Warp()] = before;
    counts.own[Warp()] = own;
  }
  SyncBlock();
  int row = 0;
  for (int warp = 0; warp < kWarps; ++warp) row += counts.before[warp];
  if (ThreadIndex() == 0) args.offsets[expert] = Least(row, args.room);
  if (!placing) {
    for (int i = row + ThreadIndex(); i < args.room; i += kThreads) args.row_tokens[i] = -1;
    return;
  }
  for (int warp = 0; warp < Warp(); ++warp) row += counts.own[warp];
  for (int first = begin; first < end; first += kWarpSize) {
    const int pair = first + Lane();
    const bool mine = LocalExpert(args, pair, end) == expert;
    const uint32_t all = Ballot(mine);
    if (mine) {
      const int at = row + CountBits(all & ((1u << Lane()) - 1u));
      args.rows[pair] = at < args.room ? at : -1;
      if (at < args.room) args.row_tokens[at] = pair / args.top_k;
    }
    row += CountBits(all);
  }
}

}  // namespace

cudaError_t LaunchMoePermute(const MoePermuteLaunch& args, cudaStream_t stream) {
  return Launch(MoePermuteKernel,
                {.grid = dim3(static_cast<unsigned>(args.local) + 1),
                 .threads = kThreads,
                 .shared_bytes = sizeof(Counts),
                 .stream = stream},
                args);
}

}  // namespace baton::kernels::cuda
