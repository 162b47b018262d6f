// Products by multiply-adds in F32, on tiles in shared memory that are widened as they come. A
// thread holds four neighbouring columns of one or of eight rows. Each sum is one chain over k,
// ascending; with block scales one chain for each block, scaled and added by one multiply-add.

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_grid.h"
#include "kernels/cuda/gemm_tile.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kColumns = 64;  // of a tile
constexpr int kDepth = 32;    // divides block_k, a multiple of 64
constexpr int kPerThread = 4;
constexpr int kColumnThreads = kColumns / kPerThread;
constexpr int kRowThreads = kThreads / kColumnThreads;

struct alignas(16) Four {
  float values[kPerThread];
};

// Both sides with k first, so that neighbouring columns lie together; the padding keeps those of
// one k aligned and spreads the k over the banks.
template <int kRows, bool kPair>
struct Tiles {
  alignas(16) float x[kDepth][kRows + 4];
  alignas(16) float w[kPair ? 2 : 1][kDepth][kColumns + 4];
};

BATON_DEVICE float LoadWeight(const GemmWeight& weight, GemmType type, int64_t row, int64_t k) {
  const int64_t at = row * weight.stride + k;
  if (type == GemmType::kF32) return static_cast<const float*>(weight.data)[at];
  if (type == GemmType::kBf16) return Bf16ToFloat(static_cast<const uint16_t*>(weight.data)[at]);
  return E4M3ToFloat(static_cast<const uint8_t*>(weight.data)[at]);
}

template <int kPerThreadRows>
struct Sums {
  float values[kPerThreadRows][kPerThread] = {};
};

template <int kRows, int kSumRows>
BATON_DEVICE void MultiplyStep(Sums<kSumRows>& sums, const float (&x)[kRows + 4],
                               const float (&w)[kColumns + 4], int row, int column) {
  const Four wide = *reinterpret_cast<const Four*>(&w[column]);
#pragma unroll
  for (int r = 0; r < kSumRows; ++r) {
    const float value = x[row + r];
#pragma unroll
    for (int c = 0; c < kPerThread; ++c) {
      sums.values[r][c] = fmaf(value, wide.values[c], sums.values[r][c]);
    }
  }
}

// Adds one block's sums, scaled.
template <int kSumRows>
BATON_DEVICE void Promote(const GemmLaunch& args, const GemmWeight& weight, int64_t row,
                          int columns, int k, Sums<kSumRows>& block, Sums<kSumRows>& total) {
  const int blocks = (args.k + args.block_k - 1) / args.block_k;
#pragma unroll
  for (int c = 0; c < kPerThread; ++c) {
    if (c >= columns) continue;
    const float scale =
        weight.scales[(weight.first_row + row + c) / args.block_n * blocks + k / args.block_k];
#pragma unroll
    for (int r = 0; r < kSumRows; ++r) {
      total.values[r][c] = fmaf(block.values[r][c], scale, total.values[r][c]);
      block.values[r][c] = 0.0f;
    }
  }
}

template <int kRows, bool kPair>
BATON_KERNEL(kThreads)
GemmF32Kernel(const GemmLaunch args) {
  constexpr int kSumRows = kRows / kRowThreads;
  constexpr int kWeights = kPair ? 2 : 1;
  auto& tiles = SharedMemory<Tiles<kRows, kPair>>();
  const GemmTile tile = FindTile<kRows>(args, BlockX());
  if (tile.rows <= 0) return;  // the whole block
  const int n = BlockY() * kColumns;
  const int columns = Least(kColumns, args.n - n);
  const int64_t w_row = args.w_begin + BlockZ() * args.w_step + n;
  const int64_t x_column = BlockZ() * args.x_step;
  const bool scaled = args.type == GemmType::kE4M3;
  const int row = ThreadIndex() / kColumnThreads * kSumRows;
  const int column = ThreadIndex() % kColumnThreads * kPerThread;
  const bool works = row < tile.rows && column < columns;
  Sums<kSumRows> block[kWeights], total[kWeights];
  for (int k = 0; k < args.k; k += kDepth) {
    const int depth = Least(kDepth, args.k - k);
    for (int i = ThreadIndex(); i < kRows * kDepth; i += kThreads) {
      const int r = i / kDepth, d = i % kDepth;
      float value = 0.0f;
      if (r < tile.rows && d < depth) {
        value = LoadElement(args.x, SourceRow(args, tile, r), x_column + k + d);
      }
      tiles.x[d][r] = value;
    }
#pragma unroll
    for (int j = 0; j < kWeights; ++j) {
      const GemmWeight& weight = WeightOf(args, tile.group, j == 1);
      for (int i = ThreadIndex(); i < kColumns * kDepth; i += kThreads) {
        const int c = i / kDepth, d = i % kDepth;
        tiles.w[j][d][c] =
            c < columns && d < depth ? LoadWeight(weight, args.type, w_row + c, k + d) : 0.0f;
      }
    }
    SyncBlock();
    if (works) {
      for (int d = 0; d < depth; ++d) {
#pragma unroll
        for (int j = 0; j < kWeights; ++j) {
          MultiplyStep<kRows>(block[j], tiles.x[d], tiles.w[j][d], row, column);
        }
      }
      if (scaled && (k + depth == args.k || (k + depth) % args.block_k == 0)) {
#pragma unroll
        for (int j = 0; j < kWeights; ++j) {
          Promote(args, WeightOf(args, tile.group, j == 1), w_row + column, columns - column, k,
                  block[j], total[j]);
        }
      }
    }
    SyncBlock();
  }
  if (!works) return;
#pragma unroll
  for (int r = 0; r < kSumRows; ++r) {
    if (row + r >= tile.rows) continue;
#pragma unroll
    for (int c = 0; c < kPerThread; ++c) {
      if (column + c >= columns) continue;
      // Selected value by value, so that both stay in registers.
      const float gate = scaled ? total[0].values[r][c] : block[0].values[r][c];
      const float up = scaled ? total[kWeights - 1].values[r][c] : block[kWeights - 1].values[r][c];
      const float sum = kPair ? SiluMul(gate, up) : gate;
      StoreSum(args, tile.row + r + row, BlockZ() * args.out_step + n + column + c, sum);
    }
  }
}

BATON_KERNEL(kThreads) GemmTableKernel(const GemmTableLaunch args) {
  if (ThreadIndex() < args.count) args.table[ThreadIndex()] = args.weights[ThreadIndex()];
}

template <int kRows, bool kPair>
cudaError_t LaunchTile(const GemmLaunch& args, cudaStream_t stream) {
  return Launch(GemmF32Kernel<kRows, kPair>,
                {.grid = GemmGrid(args, kRows, kColumns),
                 .threads = kThreads,
                 .shared_bytes = sizeof(Tiles<kRows, kPair>),
                 .stream = stream},
                args);
}

}  // namespace

cudaError_t LaunchGemmF32(const GemmLaunch& args, cudaStream_t stream) {
  const bool pair = args.epilogue == GemmEpilogue::kSiluMul;
  if (args.rows <= kRowThreads * args.groups) {
    return pair ? LaunchTile<kRowThreads, true>(args, stream)
                : LaunchTile<kRowThreads, false>(args, stream);
  }
  return pair ? LaunchTile<8 * kRowThreads, true>(args, stream)
              : LaunchTile<8 * kRowThreads, false>(args, stream);
}

cudaError_t LaunchGemmTable(const GemmTableLaunch& args, cudaStream_t stream) {
  static_assert(GemmTableLaunch::kMost <= kThreads);
  return Launch(GemmTableKernel, {.threads = kThreads, .stream = stream}, args);
}

}  // namespace baton::kernels::cuda
