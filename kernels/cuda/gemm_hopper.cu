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
constexpr int kSteps = kHopperDepth / 16;      // instructions of a stage
constexpr int kChunks = 2;                     // of 64 BF16, 128 bytes
constexpr int kCodePitch = kHopperDepth + 16;  // eight rows begin on different banks
constexpr int kChunkBytes = kSide * 128;

template <int rows, int stages, bool fp8>
struct HopperShape {
  static constexpr int kRows = rows, kStages = stages;
  static constexpr bool kFp8 = fp8;
  // Whether those that compute need more registers than an even share.
  static constexpr bool kRoles = rows > 64;
};

template <bool kFp8>
struct StageOfW;
template <>
struct alignas(1024) StageOfW<true> {
  unsigned char codes[2 * kSide][kCodePitch];
};
template <>
struct alignas(1024) StageOfW<false> {
  unsigned char chunks[2][kChunks][kChunkBytes];
};

template <typename S>
struct HopperStage {
  alignas(1024) unsigned char x[kChunks][S::kRows * 128];
  StageOfW<S::kFp8> w;
};

template <typename S>
using Ring = HopperRing<S, HopperStage<S>>;

// --- those that copy

template <typename S>
BATON_DEVICE void CopyStage(const GemmLaunch& args, const GemmTile& tile, const Outputs& outputs,
                            const CopiesOfX<S>& copies, int k, HopperStage<S>& stage) {
  const int thread = ThreadIndex() - kComputing;
  const int piece = thread % kPieces, line = thread / kPieces;
  const void* const anywhere = args.x.data;
  const auto* const x = static_cast<const uint16_t*>(args.x.data) + BlockZ() * args.x_step;
#pragma unroll
  for (int i = 0; i < S::kRows / kLines; ++i) {
    const int row = i * kLines + line;
    const auto* const from =
        copies.rows[i] < 0
            ? nullptr
            : reinterpret_cast<const unsigned char*>(x + copies.rows[i] * args.x.stride);
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      CopyPiece(&stage.x[c][SwizzledByte(row, 16 * piece)], from, 2 * k + 128 * c + 16 * piece,
                2 * args.k, anywhere);
    }
  }
  constexpr int kElement = S::kFp8 ? 1 : 2;
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    const GemmWeight& weight = WeightOf(args, tile.group, outputs.pair && side == 1);
    const auto* const data = static_cast<const unsigned char*>(weight.data);
#pragma unroll
    for (int i = 0; i < kSide / kLines; ++i) {
      const int row = i * kLines + line;
      const int output = outputs.Of(side * kSide + row);
      const unsigned char* const from =
          output < args.n ? data + (outputs.w_row + output) * weight.stride * kElement : nullptr;
      if constexpr (S::kFp8) {
        CopyPiece(&stage.w.codes[side * kSide + row][16 * piece], from, k + 16 * piece, args.k,
                  anywhere);
      } else {
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
          CopyPiece(&stage.w.chunks[side][c][SwizzledByte(row, 16 * piece)], from,
                    2 * k + 128 * c + 16 * piece, 2 * args.k, anywhere);
        }
      }
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
        const unsigned char* const from = &stage.w.codes[RowOf(half)][16 * step + Lane() % 4 * 2];
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
    const auto& w = stage.w.chunks[Warp() / 4];
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
BATON_KERNEL(kHopperThreads)
GemmHopperKernel(const GemmLaunch args) {
  auto& ring = SharedMemory<Ring<S>>();
  const GemmTile tile = FindTile<S::kRows>(args, BlockX());
  if (tile.rows <= 0) return;  // the whole block
  ring.Initialize();
  const Outputs outputs(args);
  const int count = (args.k + kHopperDepth - 1) / kHopperDepth;
  if (ThreadIndex() >= kComputing) {
    if constexpr (S::kRoles) GiveRegisters<kCopyRegisters>();
    const CopiesOfX<S> copies(args, tile, (ThreadIndex() - kComputing) / kPieces);
    const auto copy = [&](int i, HopperStage<S>& stage) {
      CopyStage<S>(args, tile, outputs, copies, i * kHopperDepth, stage);
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
  if (rows <= 16) return LaunchWith<HopperShape<16, kFp8 ? 5 : 3, kFp8>>(args, stream);
  if (rows <= 64) return LaunchWith<HopperShape<64, kFp8 ? 6 : 4, kFp8>>(args, stream);
  return LaunchWith<HopperShape<128, kFp8 ? 4 : 3, kFp8>>(args, stream);
}

}  // namespace

cudaError_t LaunchGemmHopper(const GemmLaunch& args, cudaStream_t stream) {
  return args.type == GemmType::kE4M3 ? LaunchType<true>(args, stream)
                                      : LaunchType<false>(args, stream);
}

}  // namespace baton::kernels::cuda
