// Keys and values of each head from the latents of a context: what MlaPrefill attends to.
//
// A block has 64 keys' latents in shared memory and multiplies them with the head's rows of kv_b,
// 64 of them at a time. Latents and weights enter exactly, with their scales apart
// (latent_tile.h). A sum is a chain over the latents in steps of 16, ascending; with scales one
// such chain for each piece of latents that has one scale on both sides.

#include "kernels/cuda/elements.h"
#include "kernels/cuda/latent_tile.h"
#include "kernels/cuda/mla_prefill.h"
#include "kernels/cuda/panel.h"
#include "kernels/cuda/weight_panel.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kColumnWarps = 4;        // of 16 columns; two rows of them, of 32 keys
constexpr int kChunk = kPanelColumns;  // of latents between two weights' stages
static_assert(kTileKeys == kPanelKeys);
static_assert(kLatentGroup % kChunk == 0);

struct ExpandShared {
  LatentTile latents;
  LatentScales scales;                        // of FP8 pages
  alignas(16) uint16_t w[2][kPanelElements];  // rows of kv_b, latents as columns
};
static_assert(sizeof(ExpandShared) <= 99 * 1024);  // Ada

// The rows of kv_b that become a panel's columns.
BATON_DEVICE WeightRows RowsOfPanel(const MlaPrefillLaunch& args, int head, int panel) {
  const int keys = PanelsFor(args.nope);
  const bool value = panel >= keys;
  const int begin = (value ? panel - keys : panel) * kPanelColumns;
  return {head * (args.nope + args.v) + (value ? args.nope : 0) + begin,
          Least(kPanelColumns, (value ? args.v : args.nope) - begin)};
}

using Sums = float[2][2][4];  // a warp's 32 keys x 16 columns

BATON_DEVICE void Multiply(const MlaPrefillLaunch& args, const ExpandShared& shared,
                           const uint16_t* w, int chunk, Sums& sums) {
  const int key = Warp() / kColumnWarps * 32, column = Warp() % kColumnWarps * 16;
  const int steps = Least(kChunk, args.pages.kv_lora - chunk * kChunk) / 16;
#pragma unroll
  for (int step = 0; step < kChunk / 16; ++step) {
    if (step >= steps) break;
    uint32_t b[4];
    LoadPanelB(b, w, column, step);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      uint32_t a[4];
      LoadRows16(a, &shared.latents.keys[key + 16 * m][chunk * kChunk + 16 * step], kTilePitch);
      MmaBf16(sums[m][0], a, {b[0], b[1]});
      MmaBf16(sums[m][1], a, {b[2], b[3]});
    }
  }
}

// total += sums * scales of the latents from `k` on; sums = 0.
template <bool kFp8Pages, bool kFp8Weights>
BATON_DEVICE void Promote(const MlaPrefillLaunch& args, const ExpandShared& shared,
                          const WeightRows& rows, int k, Sums& sums, Sums& total) {
  const int lane = Lane();
  const int key = Warp() / kColumnWarps * 32 + lane / 4;
  const int column = Warp() % kColumnWarps * 16 + lane % 4 * 2;
  const int k_blocks = (args.pages.kv_lora + args.block_k - 1) / args.block_k;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int n = i / 2, c = column + 8 * n + i % 2;
    float scale = 1.0f;
    if constexpr (kFp8Weights) {
      const int block = (args.kv_b.first_row + rows.first + c) / args.block_n;
      scale =
          c < rows.count ? args.kv_b.scales[int64_t{block} * k_blocks + k / args.block_k] : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int m = j / 2, e = j % 2 * 2 + i % 2;
      float sum = sums[m][n][e];
      if constexpr (kFp8Pages) sum *= shared.scales.of[key + 16 * m + j % 2 * 8][k / kLatentGroup];
      total[m][n][e] = fmaf(sum, scale, total[m][n][e]);
      sums[m][n][e] = 0.0f;
    }
  }
}

// A value that is no number comes from a latent that is none, so its key is none either, and who
// sees the key is told by its score. It is left out here, for who does not see the key multiplies
// with it as well, by zero.
BATON_DEVICE float FiniteOrZero(float value) { return fabsf(value) < INFINITY ? value : 0.0f; }

// The sums as two BF16 terms.
BATON_DEVICE void StorePanels(const MlaPrefillLaunch& args, int block, int panel,
                              const Sums& sums) {
  const int keys = PanelsFor(args.nope);
  const bool value = panel >= keys;
  const int high = value ? 2 * panel : panel, low = value ? high + 1 : high + keys;
  uint16_t* const to = args.expanded + (static_cast<int64_t>(block) * args.group + BlockY()) *
                                           ExpandedPanels(args.nope, args.v) * kPanelElements;
  const int key = Warp() / kColumnWarps * 32 + Lane() / 4;
  const int chunk = Warp() % kColumnWarps * 2;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int m = i / 4, n = i / 2 % 2, half = i % 2;
    uint32_t terms[2];
    float pair[2] = {sums[m][n][2 * half], sums[m][n][2 * half + 1]};
    if (value) {
      pair[0] = FiniteOrZero(pair[0]);
      pair[1] = FiniteOrZero(pair[1]);
    }
    SplitBf16x2(pair[0], pair[1], terms[0], terms[1]);
    const int at = PanelAt(key + 16 * m + 8 * half, chunk + n) + Lane() % 4 * 2;
    *reinterpret_cast<Word*>(to + high * kPanelElements + at) = {terms[0]};
    *reinterpret_cast<Word*>(to + low * kPanelElements + at) = {terms[1]};
  }
}

// The rotary keys, zeros behind them.
BATON_DEVICE void StoreRotary(const MlaPrefillLaunch& args, const ExpandShared& shared, int block) {
  uint16_t* const to = args.rotary + static_cast<int64_t>(block) * kPanelElements;
  for (int i = ThreadIndex(); i < kPanelElements / 2; i += kThreads) {
    const int key = i / (kPanelColumns / 2), d = i % (kPanelColumns / 2) * 2;
    const uint16_t* from = &shared.latents.keys[key][args.pages.kv_lora + d];
    *reinterpret_cast<Word*>(to + PanelAt(key, d / 8) + d % 8) = {
        d < args.pages.rope ? reinterpret_cast<const Word*>(from)->bits : 0};
  }
}

template <bool kFp8Pages, bool kFp8Weights>
BATON_KERNEL(kThreads)
MlaExpandKernel(const MlaPrefillLaunch args) {
  auto& shared = SharedMemory<ExpandShared>();
  const BatchPiece piece = FindPiece<PieceKind::kKeyBlock>(args.batch, BlockX());
  if (piece.sequence < 0) return;  // the whole block
  const int head = args.first_head + BlockY();
  const int first = piece.index * kPanelKeys, end = args.batch.context_len[piece.sequence];
  const bool aligned = AlignedEntries(args.pages);
  if constexpr (kFp8Pages) {
    StageFp8<kThreads>(args.pages, args.batch, aligned, piece.sequence, first, end, shared.latents,
                       shared.scales);
  } else {
    StageBf16<kThreads>(args.pages, args.batch, aligned, piece.sequence, first, end,
                        shared.latents);
  }
  CopyAsyncCommit();
  const int chunks = (args.pages.kv_lora + kChunk - 1) / kChunk;
  const int stages = (PanelsFor(args.nope) + PanelsFor(args.v)) * chunks;
  WeightPanelStager<kFp8Weights, kThreads> stager(args.kv_b, args.pages.kv_lora);
  stager.Fetch(RowsOfPanel(args, head, 0), 0, shared.w[0]);
  stager.Store(shared.w[0]);
  Sums sums = {};
  Sums total = {};  // with scales; otherwise not used
  for (int i = 0; i < stages; ++i) {
    CopyAsyncWait<0>();
    SyncBlock();
    const int next = i + 1;
    if (next < stages) {
      stager.Fetch(RowsOfPanel(args, head, next / chunks), next % chunks * kChunk,
                   shared.w[next % 2]);
    }
    if (i == 0 && head == 0) StoreRotary(args, shared, BlockX());
    const int panel = i / chunks, chunk = i % chunks;
    Multiply(args, shared, shared.w[i % 2], chunk, sums);
    const int k = (chunk + 1) * kChunk;
    if constexpr (kFp8Pages || kFp8Weights) {
      if (chunk + 1 == chunks || (kFp8Pages && k % kLatentGroup == 0) ||
          (kFp8Weights && k % args.block_k == 0)) {
        Promote<kFp8Pages, kFp8Weights>(args, shared, RowsOfPanel(args, head, panel), k - kChunk,
                                        sums, total);
      }
    }
    if (chunk + 1 == chunks) {
      Sums& done = kFp8Pages || kFp8Weights ? total : sums;
      StorePanels(args, BlockX(), panel, done);
#pragma unroll
      for (int j = 0; j < 16; ++j) done[j / 8][j / 4 % 2][j % 4] = 0.0f;
    }
    if (next < stages) stager.Store(shared.w[next % 2]);
  }
}

template <bool kFp8Pages, bool kFp8Weights>
cudaError_t Run(const MlaPrefillLaunch& args, cudaStream_t stream) {
  return Launch(
      MlaExpandKernel<kFp8Pages, kFp8Weights>,
      {.grid = dim3(static_cast<unsigned>(args.key_blocks), static_cast<unsigned>(args.group)),
       .threads = kThreads,
       .shared_bytes = sizeof(ExpandShared),
       .stream = stream},
      args);
}

}  // namespace

cudaError_t LaunchMlaExpand(const MlaPrefillLaunch& args, cudaStream_t stream) {
  const bool fp8_weights = args.type == GemmType::kE4M3;
  if (args.pages.format == PageFormat::kFp8) {
    return fp8_weights ? Run<true, true>(args, stream) : Run<true, false>(args, stream);
  }
  return fp8_weights ? Run<false, true>(args, stream) : Run<false, false>(args, stream);
}

}  // namespace baton::kernels::cuda
