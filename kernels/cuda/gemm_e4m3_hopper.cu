// Products of E4M3 rows with E4M3 weights for Hopper, by matrix instructions of warpgroups. For
// sm_90a alone.
//
// A stage is 128 k, what one scale of a row and one of the weight are for: a chain of four
// instructions from zero, then one multiply-add into the total with the product of both scales.
// Codes lie in shared memory as they are, and both operands are read there.

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_hopper.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kSteps = kHopperDepth / 32;  // instructions of a stage

template <int rows, int stages>
using CodeShape = HopperShape<rows, stages, 1>;

// 128 codes of a row are the 128 bytes that are swizzled.
template <typename S>
struct CodeStage {
  alignas(1024) unsigned char x[S::kRows * 128];
  TilesOfW<S> w;
  alignas(8) float scales[S::kRows];  // of x's rows
};

template <typename S>
using Ring = HopperRing<S, CodeStage<S>>;

// --- those that copy

template <typename S>
struct CodeCopy {
  static_assert(S::kCopying >= S::kRows);  // a row's scales are one thread's

  const HopperGemm& launch;
  const Outputs& outputs;
  const int count;
  const CopiesOfX<S> of_x;
  const CopiesOfW<S> of_w;
  const float* scales;  // of the row whose scales this thread brings; null: none
  float scale;          // of the next stage: read one stage ahead

  BATON_DEVICE CodeCopy(const HopperGemm& all, const GemmTile& tile, const Outputs& columns,
                        int stages)
      : launch(all),
        outputs(columns),
        count(stages),
        of_x(all.product, tile),
        of_w(all.product, tile, columns),
        scales(nullptr) {
    const GemmLaunch& args = launch.product;
    if (Copier() < Least(S::kRows, tile.rows)) {
      scales = args.x_scales + SourceRow(args, tile, Copier()) * args.x_scale_stride;
    }
    scale = scales == nullptr ? 0.0f : scales[0];
  }

  BATON_DEVICE void operator()(int i, CodeStage<S>& stage, TransactionBarrier* full) {
    of_w.Copy(launch, outputs, i * kHopperDepth, stage.w, full);
    const GemmLaunch& args = launch.product;
    const int k = i * kHopperDepth + 16 * CopiersPiece();
    const auto* const x = static_cast<const unsigned char*>(args.x.data) + BlockZ() * args.x_step;
#pragma unroll
    for (int j = 0; j < S::kRows / S::kLines; ++j) {
      const unsigned char* const from =
          of_x.rows[j] < 0 ? nullptr : x + of_x.rows[j] * args.x.stride;
      CopyPiece(&stage.x[SwizzledByte(j * S::kLines + CopiersLine(), 16 * CopiersPiece())], from, k,
                args.k, args.x.data);
    }
    if (Copier() < S::kRows) stage.scales[Copier()] = scale;
    if (scales != nullptr && i + 1 < count) scale = scales[i + 1];
  }
};

// --- those that compute

template <typename S>
BATON_DEVICE void MultiplyStage(const CodeStage<S>& stage, HopperSums<S>& sums) {
  const auto& w = stage.w.tiles[Warp() / 4][0];
  GroupMmaFence(sums);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    GroupMmaE4M3<S::kRows>(sums, RowsAt(w, 32 * step), RowsAt(stage.x, 32 * step), step > 0);
  }
  GroupMmaCommit();
  GroupMmaWait<0>(sums);
}

template <typename S>
BATON_DEVICE void ComputeAll(const GemmLaunch& args, const GemmTile& tile, const Outputs& outputs,
                             int count, Ring<S>& ring) {
  HopperSums<S> sums = {};
  HopperSums<S> total = {};
  const RowScales scales(args, tile, outputs);
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    // Asked for before the wait.
    const float of_w[2] = {scales.of[0] == nullptr ? 0.0f : scales.of[0][i],
                           scales.of[1] == nullptr ? 0.0f : scales.of[1][i]};
    const CodeStage<S>& stage = ring.stages[i % S::kStages];
    AwaitTransaction(&ring.full[i % S::kStages], i / S::kStages % 2);
    MultiplyStage<S>(stage, sums);
#pragma unroll
    for (int j = 0; j < S::kRows / 2; ++j) {
      const float of_x = stage.scales[j / 4 * 8 + Lane() % 4 * 2 + j % 2];
      total[j] = fmaf(sums[j], of_x * of_w[j / 2 % 2], total[j]);
    }
    SyncWarp();
    if (Lane() == 0) Arrive(&ring.empty[i % S::kStages]);
  }
  FinishSums<S>(args, tile, outputs, ring, total);
}

template <typename S>
BATON_KERNEL(S::kThreads)
GemmE4M3HopperKernel(BATON_GRID_CONSTANT const HopperGemm launch) {
  auto& ring = SharedMemory<Ring<S>>();
  PrefetchMaps(launch);
  const GemmLaunch& args = launch.product;
  const GemmTile tile = FindTile<S::kRows>(args, BlockX());
  if (tile.rows <= 0) return;  // the whole block
  ring.Initialize(launch);
  const Outputs outputs(args);
  const int count = (args.k + kHopperDepth - 1) / kHopperDepth;
  if (ThreadIndex() >= kComputing) {
    CodeCopy<S> copy(launch, tile, outputs, count);
    CopyAll<S>(count, ring, copy);
  } else {
    ComputeAll<S>(args, tile, outputs, count, ring);
  }
}

template <typename S>
cudaError_t LaunchWith(const GemmLaunch& args, cudaStream_t stream) {
  return LaunchHopper<S, Ring<S>>(&GemmE4M3HopperKernel<S>, args, stream);
}

}  // namespace

cudaError_t LaunchGemmE4M3Hopper(const GemmLaunch& args, cudaStream_t stream) {
  const int rows = (args.rows + args.groups - 1) / args.groups;
  if (rows <= 16) return LaunchWith<CodeShape<16, 5>>(args, stream);
  if (rows <= 64) return LaunchWith<CodeShape<64, 6>>(args, stream);
  return LaunchWith<CodeShape<128, 6>>(args, stream);
}

}  // namespace baton::kernels::cuda
