// Products of E4M3 rows with E4M3 weights on tensor cores, which every architecture has from sm_89
// on.
//
// A stage is 128 k, what one scale of a row and one of the weight are for: a chain of four matrix
// instructions from zero, then one multiply-add into the total with the product of both scales.
// The tiles differ in size alone, so which is chosen changes no bit.

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_mma.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kDepth = 128;  // k of a stage, and of a block scale
constexpr int kStep = 32;    // of k, a matrix instruction's

// A block's tile is rows x columns, where columns are rows of w; a warp has 16 kRowTiles rows and 8
// kColumnTiles columns of it.
template <int rows, int columns, int row_warps, int column_warps, int stages>
struct CodeShape {
  static constexpr int kRows = rows, kColumns = columns, kStages = stages;
  static constexpr int kColumnWarps = column_warps;
  static constexpr int kThreads = row_warps * column_warps * kWarpSize;
  static constexpr int kWarpRows = rows / row_warps, kWarpColumns = columns / column_warps;
  static constexpr int kRowTiles = kWarpRows / 16, kColumnTiles = kWarpColumns / 8;
  static constexpr int kXElement = 1, kElement = 1;
  // The gap keeps 16 bytes of 8 rows, what a warp reads at once, on different banks.
  static constexpr int kStride = kDepth + 16;
  static constexpr int kXRowCopies = kDepth / 16, kWRowCopies = kDepth / 16;
  static constexpr int kXCopies = rows * kXRowCopies / kThreads;
  static constexpr int kWCopies = columns * kWRowCopies / kThreads;
};

template <typename S>
struct CodeStage {
  alignas(16) unsigned char x[S::kRows][S::kStride];
  alignas(16) unsigned char w[S::kColumns][S::kStride];
};

template <typename S>
struct CodeRing {
  CodeStage<S> stages[S::kStages];
};

// The 128 k of a stage. `row` and `column` are the warp's.
template <typename S>
BATON_DEVICE void Multiply(Sums<S>& sums, const CodeStage<S>& stage, int row, int column) {
  const int matrix = Lane() / 8, line = Lane() % 8;
#pragma unroll 1
  for (int k = 0; k < kDepth; k += kStep) {
    uint32_t a[S::kRowTiles][4];
#pragma unroll
    for (int i = 0; i < S::kRowTiles; ++i) {
      LoadMatrix4(a[i], &stage.x[row + i * 16 + matrix % 2 * 8 + line][k + matrix / 2 * 16]);
    }
#pragma unroll
    for (int j = 0; j < S::kColumnTiles; j += 2) {
      uint32_t b[4];
      LoadMatrix4(b, &stage.w[column + (j + matrix / 2) * 8 + line][k + matrix % 2 * 16]);
#pragma unroll
      for (int i = 0; i < S::kRowTiles; ++i) {
        MmaE4M3(sums[i][j], a[i], {b[0], b[1]});
        MmaE4M3(sums[i][j + 1], a[i], {b[2], b[3]});
      }
    }
  }
}

// The scales of a thread's rows.
template <typename S>
struct ScalesOfX {
  int rows[S::kRowTiles][2];  // of x; -1: no such row

  BATON_DEVICE ScalesOfX(const GemmLaunch& args, const GemmTile& tile, int row) {
#pragma unroll
    for (int i = 0; i < S::kRowTiles; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int here = row + i * 16 + half * 8 + Lane() / 4;
        rows[i][half] = -1;
        if (here >= tile.rows) continue;
        rows[i][half] = SourceRow(args, tile, here);
      }
    }
  }
  BATON_DEVICE float Of(const GemmLaunch& args, int i, int half, int block) const {
    const int row = rows[i][half];
    return row < 0 ? 0.0f : args.x_scales[row * args.x_scale_stride + block];
  }
};

// The total gets the sums of block `block` of k, by the product of both scales.
template <typename S>
BATON_DEVICE void Promote(const GemmLaunch& args, const Columns<S>& columns,
                          const ScalesOfX<S>& of_x, const Scales<S>& of_w, int block, Sums<S>& sums,
                          Sums<S>& total) {
#pragma unroll
  for (int i = 0; i < S::kRowTiles; ++i) {
    const float x[2] = {of_x.Of(args, i, 0, block), of_x.Of(args, i, 1, block)};
#pragma unroll
    for (int j = 0; j < S::kColumnTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float scale = x[e / 2] * of_w.Of(columns, j, e % 2, block);
        total[i][j][e] = fmaf(sums[i][j][e], scale, total[i][j][e]);
        sums[i][j][e] = 0.0f;
      }
    }
  }
}

template <typename S>
BATON_KERNEL(S::kThreads)
GemmE4M3Kernel(const GemmLaunch args) {
  auto& ring = SharedMemory<CodeRing<S>>();
  const GemmTile tile = FindTile<S::kRows>(args, BlockX());
  if (tile.rows <= 0) return;  // the whole block
  const Columns<S> columns(args);
  const Copies<S> copies(args, tile, columns);
  const int row = Warp() / S::kColumnWarps * S::kWarpRows;
  const int column = Warp() % S::kColumnWarps * S::kWarpColumns;
  const bool works = row < tile.rows && columns.Output(column) < args.n;
  const ScalesOfX<S> x_scales(args, tile, row);
  const Scales<S> w_scales(args, tile, columns, column);
  Sums<S> sums = {};
  Sums<S> total = {};
  const int stages = (args.k + kDepth - 1) / kDepth;
  for (int i = 0; i < S::kStages - 1; ++i) {
    if (i < stages) copies.Load(args, ring.stages[i], i * kDepth);
    CopyAsyncCommit();
  }
#pragma unroll 1
  for (int i = 0; i < stages; ++i) {
    CopyAsyncWait<S::kStages - 2>();
    SyncBlock();
    const int next = i + S::kStages - 1;
    if (next < stages) copies.Load(args, ring.stages[next % S::kStages], next * kDepth);
    CopyAsyncCommit();
    if (!works) continue;
    Multiply<S>(sums, ring.stages[i % S::kStages], row, column);
    Promote<S>(args, columns, x_scales, w_scales, i, sums, total);
  }
  CopyAsyncWait<0>();
  if (works) StoreSums<S>(args, tile, columns, total, row, column);
}

template <typename S>
cudaError_t LaunchWith(const GemmLaunch& args, cudaStream_t stream) {
  return LaunchMma<S, CodeRing<S>>(&GemmE4M3Kernel<S>, args, stream);
}

}  // namespace

cudaError_t LaunchGemmE4M3(const GemmLaunch& args, cudaStream_t stream) {
  const int rows = (args.rows + args.groups - 1) / args.groups;
  if (rows <= 16) return LaunchWith<CodeShape<16, 64, 1, 4, 4>>(args, stream);
  if (rows <= 64) return LaunchWith<CodeShape<64, 64, 2, 2, 3>>(args, stream);
  return LaunchWith<CodeShape<128, 64, 4, 2, 3>>(args, stream);
}

}  // namespace baton::kernels::cuda
