#ifndef BATON_KERNELS_CUDA_GEMM_MMA_H_
#define BATON_KERNELS_CUDA_GEMM_MMA_H_

// What products by matrix instructions of warps have in common, whatever their types: which columns
// a block has, its copies to shared memory, block scales, and what becomes of the sums. For .cu
// files alone.
//
// A shape S of such a product has
//   kColumns, kWarpColumns         columns (rows of w) of a block and of a warp
//   kRowTiles, kColumnTiles        of a warp: 16 rows, 8 columns each
//   kRows, kThreads                of a block
//   kXElement, kElement            bytes of an element of x and of w
//   kXRowCopies, kWRowCopies       pieces of 16 bytes in a row of a stage
//   kXCopies, kWCopies             pieces that a thread copies
// and a stage of it the arrays x[rows][..] and w[columns][..].

#include <type_traits>

#include "kernels/cuda/gemm_grid.h"
#include "kernels/cuda/gemm_tile.h"

namespace baton::kernels::cuda {

// Where a block's columns begin, and which rows of w and w2 they are. For gate and up a warp's
// first columns are w's and as many behind them the same rows of w2, so that a thread holds both
// sums of an output.
template <typename S>
struct Columns {
  bool pair;
  int begin;      // the block's first output
  int64_t w_row;  // of output 0

  BATON_DEVICE explicit Columns(const GemmLaunch& args)
      : pair(args.epilogue == GemmEpilogue::kSiluMul),
        begin(BlockY() * (pair ? S::kColumns / 2 : S::kColumns)),
        w_row(args.w_begin + BlockZ() * args.w_step) {}
  // Output of tile column `column`.
  BATON_DEVICE int Output(int column) const {
    if (!pair) return begin + column;
    constexpr int kHalf = S::kWarpColumns / 2;
    return begin + column / S::kWarpColumns * kHalf + column % kHalf;
  }
  BATON_DEVICE bool Second(int column) const {
    return pair && column % S::kWarpColumns >= S::kWarpColumns / 2;
  }
};

// What a thread copies for each stage.
template <typename S>
struct Copies {
  const unsigned char* x[S::kXCopies];  // null: zeros
  const unsigned char* w[S::kWCopies];
  bool x_aligned, w_aligned;

  BATON_DEVICE Copies(const GemmLaunch& args, const GemmTile& tile, const Columns<S>& columns) {
    const int64_t x_stride = S::kXElement * args.x.stride;
    const auto* const x_data =
        static_cast<const unsigned char*>(args.x.data) + S::kXElement * BlockZ() * args.x_step;
    x_aligned = (reinterpret_cast<uintptr_t>(x_data) | x_stride) % 16 == 0;
#pragma unroll
    for (int i = 0; i < S::kXCopies; ++i) {
      const int row = (i * S::kThreads + ThreadIndex()) / S::kXRowCopies;
      x[i] = nullptr;
      if (row >= tile.rows) continue;
      x[i] = x_data + SourceRow(args, tile, row) * x_stride;
    }
    w_aligned = true;
#pragma unroll
    for (int i = 0; i < S::kWCopies; ++i) {
      const int column = (i * S::kThreads + ThreadIndex()) / S::kWRowCopies;
      const int output = columns.Output(column);
      w[i] = nullptr;
      if (output >= args.n) continue;
      const GemmWeight& weight = WeightOf(args, tile.group, columns.Second(column));
      w[i] = static_cast<const unsigned char*>(weight.data) +
             (columns.w_row + output) * weight.stride * S::kElement;
      w_aligned = w_aligned && (reinterpret_cast<uintptr_t>(w[i]) % 16) == 0;
    }
  }

  // Elements k .. of a row, 16 bytes of them, zeros behind `end`.
  template <int kElement>
  BATON_DEVICE static void Copy(void* to, const unsigned char* row, int k, int end, bool aligned,
                                const void* anywhere) {
    const int valid = row == nullptr ? 0 : Least(16, (end - k) * kElement);
    if (aligned) {
      CopyAsync16(to, valid > 0 ? row + int64_t{k} * kElement : anywhere, valid > 0 ? valid : 0);
      return;
    }
    using Element = std::conditional_t<kElement == 1, uint8_t, uint16_t>;
    const auto* from = reinterpret_cast<const Element*>(row) + k;
#pragma unroll
    for (int i = 0; i < 16 / kElement; ++i) {
      static_cast<Element*>(to)[i] = i * kElement < valid ? from[i] : Element{0};
    }
  }

  template <typename Stage>
  BATON_DEVICE void Load(const GemmLaunch& args, Stage& stage, int k) const {
    // Some address for copies of nothing.
    const void* const anywhere =
        reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(args.out.data) & ~uintptr_t{15});
#pragma unroll
    for (int i = 0; i < S::kXCopies; ++i) {
      const int at = i * S::kThreads + ThreadIndex();
      const int part = at % S::kXRowCopies * (16 / S::kXElement);
      Copy<S::kXElement>(&stage.x[at / S::kXRowCopies][part], x[i], k + part, args.k, x_aligned,
                         anywhere);
    }
#pragma unroll
    for (int i = 0; i < S::kWCopies; ++i) {
      const int at = i * S::kThreads + ThreadIndex();
      const int part = at % S::kWRowCopies * (16 / S::kElement);
      Copy<S::kElement>(&stage.w[at / S::kWRowCopies][part * S::kElement], w[i], k + part, args.k,
                        w_aligned, anywhere);
    }
  }
};

template <typename S>
using Sums = float[S::kRowTiles][S::kColumnTiles][4];

// The block scales of a thread's columns.
template <typename S>
struct Scales {
  const float* of_w;
  const float* of_w2;
  int at[S::kColumnTiles][2];  // -1: no such column
  int blocks;

  BATON_DEVICE Scales(const GemmLaunch& args, const GemmTile& tile, const Columns<S>& columns,
                      int column)
      : blocks((args.k + args.block_k - 1) / args.block_k) {
    const GemmWeight& first = WeightOf(args, tile.group, false);
    const GemmWeight& second = columns.pair ? WeightOf(args, tile.group, true) : first;
    of_w = first.scales;
    of_w2 = second.scales;
#pragma unroll
    for (int j = 0; j < S::kColumnTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int here = column + j * 8 + Lane() % 4 * 2 + e;
        const int output = columns.Output(here);
        const int begin = columns.Second(here) ? second.first_row : first.first_row;
        at[j][e] = output < args.n
                       ? static_cast<int>((begin + columns.w_row + output) / args.block_n) * blocks
                       : -1;
      }
    }
  }

  // Of column j's element e, for block `block` of k.
  BATON_DEVICE float Of(const Columns<S>& columns, int j, int e, int block) const {
    const float* const scales = columns.pair && j >= S::kColumnTiles / 2 ? of_w2 : of_w;
    return at[j][e] < 0 ? 0.0f : scales[at[j][e] + block];
  }
};

template <typename S>
BATON_DEVICE void StoreSums(const GemmLaunch& args, const GemmTile& tile, const Columns<S>& columns,
                            const Sums<S>& sums, int row, int column) {
  constexpr int kHalf = S::kColumnTiles / 2;
  const int64_t out_column = BlockZ() * args.out_step;
#pragma unroll
  for (int i = 0; i < S::kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < S::kColumnTiles; ++j) {
      if (columns.pair && j >= kHalf) continue;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int r = row + i * 16 + Lane() / 4 + e / 2 * 8;
        const int output = columns.Output(column + j * 8 + Lane() % 4 * 2 + e % 2);
        if (r >= tile.rows || output >= args.n) continue;
        float sum = sums[i][j][e];
        if (columns.pair) sum = SiluMul(sum, sums[i][(j + kHalf) % S::kColumnTiles][e]);
        StoreSum(args, tile.row + r, out_column + output, sum);
      }
    }
  }
}

// A kernel of shape S with the ring of stages in its shared memory.
template <typename S, typename Ring, typename Kernel>
cudaError_t LaunchMma(Kernel* kernel, const GemmLaunch& args, cudaStream_t stream) {
  const bool pair = args.epilogue == GemmEpilogue::kSiluMul;
  return Launch(kernel,
                {.grid = GemmGrid(args, S::kRows, pair ? S::kColumns / 2 : S::kColumns),
                 .threads = S::kThreads,
                 .shared_bytes = sizeof(Ring),
                 .stream = stream},
                args);
}

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_GEMM_MMA_H_
