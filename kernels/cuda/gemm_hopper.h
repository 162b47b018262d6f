#ifndef BATON_KERNELS_CUDA_GEMM_HOPPER_H_
#define BATON_KERNELS_CUDA_GEMM_HOPPER_H_

// What products by matrix instructions of warpgroups have in common, whatever their types. For .cu
// files of sm_90a alone.
//
// Rows of w are the instruction's 64 rows and rows of x its columns, so few rows of x waste
// nothing: a block computes 128 rows of w (64 of each of two warpgroups; of gate and up 64 each)
// for the kRows rows of x that its shape S has. Others bring both to a ring of kStages stages: rows
// of x, which are gathered, by asynchronous copies of all of them; rows of w as boxes of a tensor,
// which one thread asks the copy engine for, or, where w is no tensor (weight_maps.h), like x.

#include "kernels/cuda/gemm_grid.h"
#include "kernels/cuda/gemm_tile.h"
#include "kernels/cuda/weight_maps.h"

namespace baton::kernels::cuda {

inline constexpr int kSide = 64;  // rows of w of a warpgroup
inline constexpr int kComputing = 2 * 4 * kWarpSize;
inline constexpr int kHopperDepth = 128;        // k of a stage, and of a block scale
inline constexpr int kPieces = 8;               // of 16 bytes in 128
inline constexpr int kTileBytes = kSide * 128;  // 64 rows of 128 bytes, swizzled: a box
inline constexpr int kSumBarrier = 1;           // SyncSome's, of those that compute

struct HopperGemm {
  GemmLaunch product;
  WeightMaps maps;
};

// `element`: bytes of w's.
template <int rows, int stages, int element>
struct HopperShape {
  static constexpr int kRows = rows, kStages = stages, kElement = element;
  static constexpr int kCopying = rows <= 16 ? kWarpSize : 4 * kWarpSize;
  static constexpr int kThreads = kComputing + kCopying;
  static constexpr int kLines = kCopying / kPieces;  // rows that are copied at once
};

// Of a stage: for each warpgroup kHopperDepth columns of its rows, 128 bytes a tile.
template <typename S>
struct TilesOfW {
  alignas(1024) unsigned char tiles[2][S::kElement][kTileBytes];
};

template <typename S, typename Stage>
struct HopperRing {
  Stage stages[S::kStages];
  TransactionBarrier full[S::kStages], empty[S::kStages];

  // By the whole block.
  BATON_DEVICE void Initialize(const HopperGemm& args) {
    if (ThreadIndex() == 0) {
      const int arrivals = S::kCopying / kWarpSize + (args.maps.present ? 1 : 0);
#pragma unroll
      for (int i = 0; i < S::kStages; ++i) {
        InitTransaction(&full[i], arrivals);
        InitTransaction(&empty[i], kComputing / kWarpSize);
      }
    }
    SyncBlock();
  }
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

// Among those that copy.
BATON_DEVICE int Copier() { return ThreadIndex() - kComputing; }
BATON_DEVICE int CopiersPiece() { return Copier() % kPieces; }
BATON_DEVICE int CopiersLine() { return Copier() / kPieces; }

// What a thread copies of x: 16 bytes of every kLines-th row.
template <typename S>
struct CopiesOfX {
  int rows[S::kRows / S::kLines];  // of x; -1: zeros

  BATON_DEVICE CopiesOfX(const GemmLaunch& args, const GemmTile& tile) {
#pragma unroll
    for (int i = 0; i < S::kRows / S::kLines; ++i) {
      const int row = i * S::kLines + CopiersLine();
      rows[i] = -1;
      if (row >= tile.rows) continue;
      rows[i] = SourceRow(args, tile, row);
    }
  }
};

// 16 bytes of a row from byte `at` on, as far as `bytes`; nothing of null.
BATON_DEVICE void CopyPiece(void* to, const unsigned char* row, int at, int bytes,
                            const void* anywhere) {
  const int valid = row == nullptr ? 0 : Least(16, bytes - at);
  CopyAsync16(to, valid > 0 ? row + at : anywhere, valid > 0 ? valid : 0);
}

// Where a block's rows of w are.
template <typename S>
struct CopiesOfW {
  // Of each side's first row.
  const unsigned char* first[2];
  int layers[2];  // of the maps
  int64_t row_bytes;

  BATON_DEVICE CopiesOfW(const GemmLaunch& args, const GemmTile& tile, const Outputs& outputs) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const GemmWeight& weight = WeightOf(args, tile.group, outputs.pair && side == 1);
      layers[side] = weight.layer + BlockZ();
      row_bytes = weight.stride * S::kElement;
      first[side] = static_cast<const unsigned char*>(weight.data) +
                    (outputs.w_row + outputs.Of(side * kSide)) * row_bytes;
    }
  }

  // Columns k .. k + kHopperDepth - 1 to a stage whose barrier is `full`.
  BATON_DEVICE void Copy(const HopperGemm& args, const Outputs& outputs, int k, TilesOfW<S>& w,
                         TransactionBarrier* full) const {
    if (args.maps.present) {
      if (Copier() == 0) CopyBoxes(args.maps, outputs, k, w, full);
    } else {
      CopyPieces(args.product, outputs, k, w);
    }
  }

  BATON_DEVICE void CopyBoxes(const WeightMaps& maps, const Outputs& outputs, int k, TilesOfW<S>& w,
                              TransactionBarrier* full) const {
    ArriveExpecting(full, sizeof(w.tiles));
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const TensorMap* const map = outputs.pair && side == 1 ? &maps.w2 : &maps.w;
#pragma unroll
      for (int c = 0; c < S::kElement; ++c) {
        CopyTensor(w.tiles[side][c], map, k + c * (128 / S::kElement), outputs.Of(side * kSide),
                   layers[side], full);
      }
    }
  }

  BATON_DEVICE void CopyPieces(const GemmLaunch& args, const Outputs& outputs, int k,
                               TilesOfW<S>& w) const {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      // A loop: addresses of all rows at once would cost both ways registers.
#pragma unroll 1
      for (int row = CopiersLine(); row < kSide; row += S::kLines) {
        const unsigned char* const from =
            outputs.Of(side * kSide + row) < args.n ? first[side] + row * row_bytes : nullptr;
#pragma unroll
        for (int c = 0; c < S::kElement; ++c) {
          CopyPiece(&w.tiles[side][c][SwizzledByte(row, 16 * CopiersPiece())], from,
                    S::kElement * k + 128 * c + 16 * CopiersPiece(), S::kElement * args.k,
                    args.x.data);
        }
      }
    }
  }
};

// Fills the ring with `count` stages: copy(i, stage, full) issues stage i. kLag stages of x are
// under way when the oldest is waited for: one is being used, one is ready.
template <typename S, typename Ring, typename Copy>
BATON_DEVICE void CopyAll(int count, Ring& ring, Copy& copy) {
  constexpr int kLag = S::kStages - 2;
#pragma unroll 1
  for (int i = 0; i < count + kLag; ++i) {
    if (i < count) {
      const int stage = i % S::kStages;
      if (i >= S::kStages) AwaitTransaction(&ring.empty[stage], (i / S::kStages - 1) % 2);
      copy(i, ring.stages[stage], &ring.full[stage]);
    }
    CopyAsyncCommit();
    if (i < kLag) continue;
    CopyAsyncWait<kLag>();
    FenceAsyncProxy();
    SyncWarp();
    if (Lane() == 0) Arrive(&ring.full[(i - kLag) % S::kStages]);
  }
}

// --- those that compute

template <typename S>
using HopperSums = float[S::kRows / 2];

// Rows of w, of the block, whose sums a thread holds: element i is of RowOf(i / 2 % 2), and of row
// i / 4 * 8 + Lane() % 4 * 2 + i % 2 of x.
BATON_DEVICE int RowOf(int half) { return Warp() * 16 + Lane() / 4 + 8 * half; }

// Where the block scales of a thread's two rows lie; null: no such row.
struct RowScales {
  const float* of[2];

  BATON_DEVICE RowScales(const GemmLaunch& args, const GemmTile& tile, const Outputs& outputs) {
    const GemmWeight& weight = WeightOf(args, tile.group, outputs.pair && Warp() >= 4);
    const int blocks = (args.k + kHopperDepth - 1) / kHopperDepth;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int output = outputs.Of(RowOf(half));
      const int64_t row = weight.first_row + outputs.w_row + output;
      of[half] = output < args.n ? weight.scales + row / args.block_n * blocks : nullptr;
    }
  }
};

// Up's sums to the warpgroup that has gate's, through shared memory that nobody needs any more.
template <typename S, typename Ring>
BATON_DEVICE void ExchangeSums(Ring& ring, HopperSums<S>& sums) {
  constexpr int kSums = S::kRows / 2;
  static_assert(sizeof(ring.stages) >= kSums * 4 * kWarpSize * sizeof(float));
  float* const shared = reinterpret_cast<float*>(&ring.stages);
  const int thread = ThreadIndex() % (4 * kWarpSize);
  SyncSome(kSumBarrier, kComputing);
  if (Warp() >= 4) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) shared[i * 4 * kWarpSize + thread] = sums[i];
  }
  SyncSome(kSumBarrier, kComputing);
  if (Warp() < 4) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      sums[i] = SiluMul(sums[i], shared[i * 4 * kWarpSize + thread]);
    }
  }
}

// Behind the last stage.
template <typename S, typename Ring>
BATON_DEVICE void FinishSums(const GemmLaunch& args, const GemmTile& tile, const Outputs& outputs,
                             Ring& ring, HopperSums<S>& sums) {
  if (outputs.pair) {
    ExchangeSums<S>(ring, sums);
    if (Warp() >= 4) return;
  }
#pragma unroll
  for (int i = 0; i < S::kRows / 2; ++i) {
    const int row = i / 4 * 8 + Lane() % 4 * 2 + i % 2;
    const int output = outputs.Of(RowOf(i / 2 % 2));
    if (row >= tile.rows || output >= args.n) continue;
    StoreSum(args, tile.row + row, BlockZ() * args.out_step + output, sums[i]);
  }
}

// What all kernels begin with: those who copy will need the maps.
BATON_DEVICE void PrefetchMaps(const HopperGemm& args) {
  if (!args.maps.present || ThreadIndex() != kComputing) return;
  PrefetchTensorMap(&args.maps.w);
  if (args.product.epilogue == GemmEpilogue::kSiluMul) PrefetchTensorMap(&args.maps.w2);
}

// A kernel of shape S with the ring in its shared memory.
template <typename S, typename Ring, typename Kernel>
cudaError_t LaunchHopper(Kernel* kernel, const GemmLaunch& args, cudaStream_t stream) {
  static_assert(sizeof(Ring) <= 227 * 1024);
  HopperGemm launch{.product = args, .maps = {}};
  const cudaError_t mapped = MapWeights(args, kSide, &launch.maps);
  if (mapped != cudaSuccess) return mapped;
  const bool pair = args.epilogue == GemmEpilogue::kSiluMul;
  return Launch(kernel,
                {.grid = GemmGrid(args, S::kRows, pair ? kSide : 2 * kSide),
                 .threads = S::kThreads,
                 .shared_bytes = sizeof(Ring),
                 .stream = stream},
                launch);
}

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_GEMM_HOPPER_H_
