// Products for Hopper, by matrix instructions of warpgroups. For sm_90a alone.
//
// Rows of w are the instruction's 64 rows and rows of x its columns, so few rows of x waste
// nothing: a block computes 128 rows of w (64 of each of two warpgroups; of gate and up 64 each)
// for 16, 64 or 128 rows of x. A third warpgroup copies both to a ring of stages.
//
// Every sum is one chain of instructions over k in steps of 16, ascending, up to the next multiple
// of 128 behind k; with block scales one such chain for each 128 k, scaled and added by one
// multiply-add. E4M3 becomes BF16, exactly, on its way to the registers that are operand a.

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_grid.h"
#include "kernels/cuda/gemm_tile.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kSide = 64;  // rows of w of a warpgroup
constexpr int kComputing = 2 * 4 * kWarpSize;
constexpr int kCopying = 4 * kWarpSize;
constexpr int kThreads = kComputing + kCopying;
constexpr int kCopyRegisters = 72, kComputeRegisters = 216;
constexpr int kDepth = 128;                 // k of a stage, and of a block scale
constexpr int kSteps = kDepth / 16;         // instructions of a stage
constexpr int kChunks = 2;                  // of 64 BF16, 128 bytes
constexpr int kCodePitch = kDepth + 16;     // eight rows begin on different banks
constexpr int kPieces = 8;                  // of 16 bytes in 128
constexpr int kLines = kCopying / kPieces;  // rows that are copied at once
constexpr int kBarrier = 1;                 // SyncSome's, of those that compute
constexpr int kChunkBytes = kSide * 128;

template <int rows, int stages, bool fp8>
struct HopperShape {
  static constexpr int kRows = rows, kStages = stages;
  static constexpr bool kFp8 = fp8;
  // Stages under way when the oldest is waited for: one is being used, one is ready.
  static constexpr int kLag = stages - 2;
  static constexpr int kSums = rows / 2;  // of a thread
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
struct HopperRing {
  HopperStage<S> stages[S::kStages];
  TransactionBarrier full[S::kStages], empty[S::kStages];
};

// Which of w's rows are a block's.
struct Outputs {
  bool pair;
  int begin;      // the block's first output
  int64_t w_row;  // of output 0

  BATON_DEVICE explicit Outputs(const GemmLaunch& args)
      : pair(args.epilogue == GemmEpilogue::kSiluMul),
        begin(BlockY() * (pair ? kSide : 2 * kSide)),
        w_row(args.w_begin + BlockZ() * args.w_step) {}
  // Of the block's row of w.
  BATON_DEVICE int Of(int row) const { return begin + (pair ? row % kSide : row); }
};

// --- those that copy

// What a thread copies of x: 16 bytes of every kLines-th row.
template <typename S>
struct CopiesOfX {
  int rows[S::kRows / kLines];  // of x; -1: zeros

  BATON_DEVICE CopiesOfX(const GemmLaunch& args, const GemmTile& tile, int line) {
#pragma unroll
    for (int i = 0; i < S::kRows / kLines; ++i) {
      const int row = i * kLines + line;
      rows[i] = -1;
      if (row >= tile.rows) continue;
      rows[i] = args.row_index == nullptr ? tile.row + row : args.row_index[tile.row + row];
    }
  }
};

// 16 bytes of a row from byte `at` on, as far as `bytes`; nothing of null.
BATON_DEVICE void CopyPiece(void* to, const unsigned char* row, int at, int bytes,
                            const void* anywhere) {
  const int valid = row == nullptr ? 0 : Least(16, bytes - at);
  CopyAsync16(to, valid > 0 ? row + at : anywhere, valid > 0 ? valid : 0);
}

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

template <typename S>
BATON_DEVICE void CopyAll(const GemmLaunch& args, const GemmTile& tile, const Outputs& outputs,
                          int count, HopperRing<S>& ring) {
  const CopiesOfX<S> copies(args, tile, (ThreadIndex() - kComputing) / kPieces);
#pragma unroll 1
  for (int i = 0; i < count + S::kLag; ++i) {
    if (i < count) {
      const int stage = i % S::kStages;
      if (i >= S::kStages) AwaitTransaction(&ring.empty[stage], (i / S::kStages - 1) % 2);
      CopyStage<S>(args, tile, outputs, copies, i * kDepth, ring.stages[stage]);
    }
    CopyAsyncCommit();
    if (i < S::kLag) continue;
    CopyAsyncWait<S::kLag>();
    FenceAsyncProxy();
    SyncWarp();
    if (Lane() == 0) Arrive(&ring.full[(i - S::kLag) % S::kStages]);
  }
}

// --- those that compute

template <typename S>
using HopperSums = float[S::kSums];

// Rows of w, of the block, whose sums a thread holds: element i is of RowOf(i / 2 % 2), and of row
// i / 4 * 8 + Lane() % 4 * 2 + i % 2 of x.
BATON_DEVICE int RowOf(int half) { return Warp() * 16 + Lane() / 4 + 8 * half; }

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

// Where the block scales of a thread's two rows lie; null: no such row.
struct RowScales {
  const float* of[2];

  BATON_DEVICE RowScales(const GemmLaunch& args, const GemmTile& tile, const Outputs& outputs) {
    const GemmWeight& weight = WeightOf(args, tile.group, outputs.pair && Warp() >= 4);
    const int blocks = (args.k + args.block_k - 1) / args.block_k;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int output = outputs.Of(RowOf(half));
      const int64_t row = weight.first_row + outputs.w_row + output;
      of[half] = output < args.n ? weight.scales + row / args.block_n * blocks : nullptr;
    }
  }
};

// Up's sums to the warpgroup that has gate's, through shared memory that nobody needs any more.
template <typename S>
BATON_DEVICE void ExchangeSums(HopperRing<S>& ring, HopperSums<S>& sums) {
  static_assert(sizeof(ring.stages) >= S::kSums * 4 * kWarpSize * sizeof(float));
  float* const shared = reinterpret_cast<float*>(&ring.stages);
  const int thread = ThreadIndex() % (4 * kWarpSize);
  SyncSome(kBarrier, kComputing);
  if (Warp() >= 4) {
#pragma unroll
    for (int i = 0; i < S::kSums; ++i) shared[i * 4 * kWarpSize + thread] = sums[i];
  }
  SyncSome(kBarrier, kComputing);
  if (Warp() < 4) {
#pragma unroll
    for (int i = 0; i < S::kSums; ++i) {
      sums[i] = SiluMul(sums[i], shared[i * 4 * kWarpSize + thread]);
    }
  }
}

template <typename S>
BATON_DEVICE void ComputeAll(const GemmLaunch& args, const GemmTile& tile, const Outputs& outputs,
                             int count, HopperRing<S>& ring) {
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
      for (int j = 0; j < S::kSums; ++j) total[j] = fmaf(sums[j], scale[j / 2 % 2], total[j]);
    }
  }
  HopperSums<S>& result = S::kFp8 ? total : sums;
  if (outputs.pair) {
    ExchangeSums<S>(ring, result);
    if (Warp() >= 4) return;
  }
#pragma unroll
  for (int i = 0; i < S::kSums; ++i) {
    const int row = i / 4 * 8 + Lane() % 4 * 2 + i % 2;
    const int output = outputs.Of(RowOf(i / 2 % 2));
    if (row >= tile.rows || output >= args.n) continue;
    StoreSum(args, tile.row + row, BlockZ() * args.out_step + output, result[i]);
  }
}

template <typename S>
BATON_KERNEL(kThreads)
GemmHopperKernel(const GemmLaunch args) {
  auto& ring = SharedMemory<HopperRing<S>>();
  const GemmTile tile = FindTile<S::kRows>(args, BlockX());
  if (tile.rows <= 0) return;  // the whole block
  if (ThreadIndex() == 0) {
#pragma unroll
    for (int i = 0; i < S::kStages; ++i) {
      InitTransaction(&ring.full[i], kCopying / kWarpSize);
      InitTransaction(&ring.empty[i], kComputing / kWarpSize);
    }
  }
  SyncBlock();
  const Outputs outputs(args);
  const int count = (args.k + kDepth - 1) / kDepth;
  if (ThreadIndex() >= kComputing) {
    if constexpr (S::kRoles) GiveRegisters<kCopyRegisters>();
    CopyAll<S>(args, tile, outputs, count, ring);
  } else {
    if constexpr (S::kRoles) TakeRegisters<kComputeRegisters>();
    ComputeAll<S>(args, tile, outputs, count, ring);
  }
}

template <typename S>
cudaError_t LaunchWith(const GemmLaunch& args, cudaStream_t stream) {
  static_assert(sizeof(HopperRing<S>) <= 227 * 1024);
  const bool pair = args.epilogue == GemmEpilogue::kSiluMul;
  return Launch(GemmHopperKernel<S>,
                {.grid = GemmGrid(args, S::kRows, pair ? kSide : 2 * kSide),
                 .threads = kThreads,
                 .shared_bytes = sizeof(HopperRing<S>),
                 .stream = stream},
                args);
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
