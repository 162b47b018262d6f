// Products for Hopper, by matrix instructions of warpgroups. For sm_90a alone.
//
// Every sum is one chain of instructions over k in steps of 16, ascending, up to the next multiple
// of 128 behind k; with block scales one such chain for each 128 k, scaled and added by one
// multiply-add. E4M3 becomes BF16, exactly, on its way to the registers that are operand a.

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_hopper.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kCopyRegisters = 72, kComputeRegisters = 216;
constexpr int kSteps = kHopperDepth / 16;  // instructions of a stage
constexpr int kChunks = 2;                 // of 64 BF16, 128 bytes

template <int rows, int stages, bool fp8>
struct WideShape : HopperShape<rows, stages, fp8 ? 1 : 2> {
  static constexpr bool kFp8 = fp8;
  // Whether those that compute need more registers than an even share.
  static constexpr bool kRoles = rows > 64;
};

template <typename S>
struct HopperStage {
  alignas(1024) unsigned char x[kChunks][S::kRows * 128];
  TilesOfW<S> w;
};

template <typename S>
using Ring = HopperRing<S, HopperStage<S>>;

// --- those that copy

template <typename S>
BATON_DEVICE void CopyRowsOfX(const GemmLaunch& args, const CopiesOfX<S>& copies, int k,
                              HopperStage<S>& stage) {
  const int piece = CopiersPiece();
  const auto* const x = static_cast<const uint16_t*>(args.x.data) + BlockZ() * args.x_step;
#pragma unroll
  for (int i = 0; i < S::kRows / S::kLines; ++i) {
    const int row = i * S::kLines + CopiersLine();
    const auto* const from =
        copies.rows[i] < 0
            ? nullptr
            : reinterpret_cast<const unsigned char*>(x + copies.rows[i] * args.x.stride);
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      CopyPiece(&stage.x[c][SwizzledByte(row, 16 * piece)], from, 2 * k + 128 * c + 16 * piece,
                2 * args.k, args.x.data);
    }
  }
}

// --- those that compute

struct [[gnu::may_alias]] TwoCodes {
  uint16_t bits;
};

template <typename S>
BATON_DEVICE void MultiplyStage(const HopperStage<S>& stage, bool add, HopperSums<S>& sums) {
  if constexpr (S::kFp8) {
    uint32_t a[kSteps][4];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = SwizzledByte(RowOf(half) % kSide, 16 * step + Lane() % 4 * 2);
        const unsigned char* const from = &stage.w.tiles[Warp() / 4][0][at];
        const uint32_t low = reinterpret_cast<const TwoCodes*>(from)->bits;
        const uint32_t high = reinterpret_cast<const TwoCodes*>(from + 8)->bits;
        uint32_t pairs[2];
        E4M3ToBf16(low | high << 16, pairs);
        a[step][half] = pairs[0];
        a[step][2 + half] = pairs[1];
      }
    }
    GroupMmaFence(sums, a);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      GroupMmaBf16<S::kRows>(sums, a[step], RowsAt(stage.x[step / 4], 32 * (step % 4)),
                             add || step > 0);
    }
    GroupMmaCommit();
    GroupMmaWait<0>(sums, a);
  } else {
    const auto& w = stage.w.tiles[Warp() / 4];
    GroupMmaFence(sums);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      GroupMmaBf16<S::kRows>(sums, RowsAt(w[step / 4], 32 * (step % 4)),
                             RowsAt(stage.x[step / 4], 32 * (step % 4)), add || step > 0);
    }
    GroupMmaCommit();
    GroupMmaWait<0>(sums);
  }
}

template <typename S>
BATON_DEVICE void ComputeAll(const GemmLaunch& args, const GemmTile& tile, const Outputs& outputs,
                             int count, Ring<S>& ring) {
  HopperSums<S> sums = {};
  HopperSums<S> total = {};  // for scales; otherwise not used
  const RowScales scales(args, tile, outputs);
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    const int stage = i % S::kStages;
    AwaitTransaction(&ring.full[stage], i / S::kStages % 2);
    MultiplyStage<S>(ring.stages[stage], !S::kFp8 && i > 0, sums);
    SyncWarp();
    if (Lane() == 0) Arrive(&ring.empty[stage]);
    if constexpr (S::kFp8) {
      const float scale[2] = {scales.of[0] == nullptr ? 0.0f : scales.of[0][i],
                              scales.of[1] == nullptr ? 0.0f : scales.of[1][i]};
#pragma unroll
      for (int j = 0; j < S::kRows / 2; ++j) total[j] = fmaf(sums[j], scale[j / 2 % 2], total[j]);
    }
  }
  FinishSums<S>(args, tile, outputs, ring, S::kFp8 ? total : sums);
}

template <typename S>
BATON_KERNEL(S::kThreads)
GemmHopperKernel(BATON_GRID_CONSTANT const HopperGemm launch) {
  auto& ring = SharedMemory<Ring<S>>();
  PrefetchMaps(launch);
  const GemmLaunch& args = launch.product;
  const GemmTile tile = FindTile<S::kRows>(args, BlockX());
  if (tile.rows <= 0) return;  // the whole block
  ring.Initialize(launch);
  const Outputs outputs(args);
  const int count = (args.k + kHopperDepth - 1) / kHopperDepth;
  if (ThreadIndex() >= kComputing) {
    if constexpr (S::kRoles) GiveRegisters<kCopyRegisters>();
    const CopiesOfX<S> of_x(args, tile);
    const CopiesOfW<S> of_w(args, tile, outputs);
    const auto copy = [&](int i, HopperStage<S>& stage, TransactionBarrier* full) {
      of_w.Copy(launch, outputs, i * kHopperDepth, stage.w, full);
      CopyRowsOfX<S>(args, of_x, i * kHopperDepth, stage);
    };
    CopyAll<S>(count, ring, copy);
  } else {
    if constexpr (S::kRoles) TakeRegisters<kComputeRegisters>();
    ComputeAll<S>(args, tile, outputs, count, ring);
  }
}

template <typename S>
cudaError_t LaunchWith(const GemmLaunch& args, cudaStream_t stream) {
  return LaunchHopper<S, Ring<S>>(&GemmHopperKernel<S>, args, stream);
}

template <bool kFp8>
cudaError_t LaunchType(const GemmLaunch& args, cudaStream_t stream) {
  const int rows = (args.rows + args.groups - 1) / args.groups;
  if (rows <= 16) return LaunchWith<WideShape<16, kFp8 ? 5 : 3, kFp8>>(args, stream);
  if (rows <= 64) return LaunchWith<WideShape<64, kFp8 ? 7 : 4, kFp8>>(args, stream);
  return LaunchWith<WideShape<128, kFp8 ? 4 : 3, kFp8>>(args, stream);
}

}  // namespace

cudaError_t LaunchGemmHopper(const GemmLaunch& args, cudaStream_t stream) {
  return args.type == GemmType::kE4M3 ? LaunchType<true>(args, stream)
                                      : LaunchType<false>(args, stream);
}

}  // namespace baton::kernels::cuda
