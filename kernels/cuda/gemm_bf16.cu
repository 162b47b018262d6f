// Products on tensor cores. Tiles of x and w come through a ring of stages in shared memory by
// asynchronous copies; E4M3 stays E4M3 there and is widened to BF16, exactly, in registers.
//
// Every sum is one chain of matrix instructions over k in steps of 16, ascending, up to the next
// multiple of 64 behind k; with block scales one such chain for each block, scaled and added by one
// multiply-add. The tiles below differ in size alone, so which is chosen changes no bit.

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_mma.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kChunk = 64;  // of k between two looks at the block scales
constexpr int kStep = 16;   // of k, a matrix instruction's
constexpr int kSteps = kChunk / kStep;

// A block's tile is rows x columns, where columns are rows of w; a warp has 16 kRowTiles rows and 8
// kColumnTiles columns of it.
template <int rows, int columns, int row_warps, int column_warps, int depth, int stages, bool fp8>
struct Shape {
  static constexpr int kRows = rows, kColumns = columns, kDepth = depth, kStages = stages;
  static constexpr bool kFp8 = fp8;
  static constexpr int kColumnWarps = column_warps;
  static constexpr int kThreads = row_warps * column_warps * kWarpSize;
  static constexpr int kWarpRows = rows / row_warps, kWarpColumns = columns / column_warps;
  static constexpr int kRowTiles = kWarpRows / 16, kColumnTiles = kWarpColumns / 8;
  static constexpr int kXElement = 2;           // bytes of x's
  static constexpr int kElement = fp8 ? 1 : 2;  // bytes of w's
  // The gaps keep what a warp reads at once on different banks: 16 bytes of 8 rows of w, and of x
  // as well, or for fp8 8 bytes of 4 rows of x.
  static constexpr int kXStride = depth + (fp8 ? 16 : 8);  // elements
  static constexpr int kWStride = depth * kElement + 16;   // bytes
  static constexpr int kXRowCopies = depth * 2 / 16;       // copies of 16 bytes
  static constexpr int kWRowCopies = depth * kElement / 16;
  static constexpr int kXCopies = rows * kXRowCopies / kThreads;  // of a thread
  static constexpr int kWCopies = columns * kWRowCopies / kThreads;
};

template <typename S>
struct Stage {
  alignas(16) uint16_t x[S::kRows][S::kXStride];
  alignas(16) unsigned char w[S::kColumns][S::kWStride];
};

template <typename S>
struct Ring {
  Stage<S> stages[S::kStages];
};

struct alignas(8) TwoWords {
  uint32_t low, high;
};

// The 64 k from `k` of a stage on, BF16 weights. `row` and `column` are the warp's.
template <typename S>
BATON_DEVICE void MultiplyBf16(Sums<S>& sums, const Stage<S>& stage, int row, int column, int k) {
  const int matrix = Lane() / 8, line = Lane() % 8;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int at = k + step * kStep;
    uint32_t a[S::kRowTiles][4];
#pragma unroll
    for (int i = 0; i < S::kRowTiles; ++i) {
      LoadMatrix4(a[i], &stage.x[row + i * 16 + matrix % 2 * 8 + line][at + matrix / 2 * 8]);
    }
#pragma unroll
    for (int j = 0; j < S::kColumnTiles; j += 2) {
      uint32_t b[4];
      LoadMatrix4(
          b, &stage.w[column + (j + matrix / 2) * 8 + line][(at + matrix % 2 * 8) * S::kElement]);
#pragma unroll
      for (int i = 0; i < S::kRowTiles; ++i) {
        MmaBf16(sums[i][j], a[i], {b[0], b[1]});
        MmaBf16(sums[i][j + 1], a[i], {b[2], b[3]});
      }
    }
  }
}

// The same with E4M3 weights. One load brings a column's codes of all four steps, four neighbouring
// ones of each to a lane; the instruction wants 2q, 2q + 1 and 2q + 8, 2q + 9, and as the order of
// its 16 products is free, 4q .. 4q + 3 stand for them on both sides.
template <typename S>
BATON_DEVICE void MultiplyE4M3(Sums<S>& sums, const Stage<S>& stage, int row, int column, int k) {
  const int g = Lane() / 4, q = Lane() % 4;
  uint32_t codes[S::kColumnTiles][kSteps];
#pragma unroll
  for (int j = 0; j < S::kColumnTiles; ++j) {
    LoadMatrix4(codes[j], &stage.w[column + j * 8 + Lane() % 8][k + Lane() / 8 * kStep]);
  }
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    uint32_t a[S::kRowTiles][4];
#pragma unroll
    for (int i = 0; i < S::kRowTiles; ++i) {
      const uint16_t* const values = &stage.x[row + i * 16 + g][k + step * kStep + 4 * q];
      const TwoWords upper = *reinterpret_cast<const TwoWords*>(values);
      const TwoWords lower = *reinterpret_cast<const TwoWords*>(values + 8 * S::kXStride);
      a[i][0] = upper.low;
      a[i][1] = lower.low;
      a[i][2] = upper.high;
      a[i][3] = lower.high;
    }
#pragma unroll
    for (int j = 0; j < S::kColumnTiles; ++j) {
      uint32_t b[2];
      E4M3ToBf16(codes[j][step], b);
#pragma unroll
      for (int i = 0; i < S::kRowTiles; ++i) MmaBf16(sums[i][j], a[i], b);
    }
  }
}

template <typename S>
BATON_DEVICE void Promote(const Scales<S>& scales, const Columns<S>& columns, int block,
                          Sums<S>& sums, Sums<S>& total) {
#pragma unroll
  for (int j = 0; j < S::kColumnTiles; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float scale = scales.Of(columns, j, e, block);
#pragma unroll
      for (int i = 0; i < S::kRowTiles; ++i) {
        total[i][j][e] = fmaf(sums[i][j][e], scale, total[i][j][e]);
        total[i][j][e + 2] = fmaf(sums[i][j][e + 2], scale, total[i][j][e + 2]);
        sums[i][j][e] = 0.0f;
        sums[i][j][e + 2] = 0.0f;
      }
    }
  }
}

template <typename S>
BATON_KERNEL(S::kThreads)
GemmBf16Kernel(const GemmLaunch args) {
  auto& ring = SharedMemory<Ring<S>>();
  const GemmTile tile = FindTile<S::kRows>(args, BlockX());
  if (tile.rows <= 0) return;  // the whole block
  const Columns<S> columns(args);
  const Copies<S> copies(args, tile, columns);
  const int row = Warp() / S::kColumnWarps * S::kWarpRows;
  const int column = Warp() % S::kColumnWarps * S::kWarpColumns;
  const bool works = row < tile.rows && columns.Output(column) < args.n;
  const Scales<S> scales(args, tile, columns, column);
  Sums<S> sums = {};
  Sums<S> total = {};  // for scales; otherwise not used
  const int stages = (args.k + S::kDepth - 1) / S::kDepth;
  for (int i = 0; i < S::kStages - 1; ++i) {
    if (i < stages) copies.Load(args, ring.stages[i], i * S::kDepth);
    CopyAsyncCommit();
  }
  for (int i = 0; i < stages; ++i) {
    CopyAsyncWait<S::kStages - 2>();
    SyncBlock();
    const int next = i + S::kStages - 1;
    if (next < stages) copies.Load(args, ring.stages[next % S::kStages], next * S::kDepth);
    CopyAsyncCommit();
    if (!works) continue;
    const Stage<S>& stage = ring.stages[i % S::kStages];
#pragma unroll 1
    for (int chunk = 0; chunk < S::kDepth; chunk += kChunk) {
      const int k = i * S::kDepth + chunk;
      if (k >= args.k) break;
      if constexpr (S::kFp8) {
        MultiplyE4M3<S>(sums, stage, row, column, chunk);
        if (k + kChunk >= args.k || (k + kChunk) % args.block_k == 0) {
          Promote<S>(scales, columns, k / args.block_k, sums, total);
        }
      } else {
        MultiplyBf16<S>(sums, stage, row, column, chunk);
      }
    }
  }
  CopyAsyncWait<0>();
  if (works) StoreSums<S>(args, tile, columns, S::kFp8 ? total : sums, row, column);
}

template <typename S>
cudaError_t LaunchWith(const GemmLaunch& args, cudaStream_t stream) {
  return LaunchMma<S, Ring<S>>(&GemmBf16Kernel<S>, args, stream);
}

// By the mean rows of a group: decoding reads w once for a few rows and wants bytes in flight,
// prefill wants each byte in shared memory used often.
template <bool kFp8>
cudaError_t LaunchType(const GemmLaunch& args, cudaStream_t stream) {
  const int rows = (args.rows + args.groups - 1) / args.groups;
  if (rows <= 16) {
    return LaunchWith<Shape<16, 64, 1, 4, kFp8 ? 64 : 128, kFp8 ? 6 : 3, kFp8>>(args, stream);
  }
  if (rows <= 64) return LaunchWith<Shape<64, 64, 2, 2, 64, 3, kFp8>>(args, stream);
  return LaunchWith<Shape<128, 128, 2, 4, 64, kFp8 ? 3 : 2, kFp8>>(args, stream);
}

}  // namespace

cudaError_t LaunchGemmBf16(const GemmLaunch& args, cudaStream_t stream) {
  return args.type == GemmType::kE4M3 ? LaunchType<true>(args, stream)
                                      : LaunchType<false>(args, stream);
}

}  // namespace baton::kernels::cuda
