// The absorbed form by matrix instructions. 16 heads of one row are the rows of operand a; the keys
// are staged once for the scores and for the weighing.
//
// Latents enter exactly (latent_tile.h). Exponentials, and queries that come as F32, enter as two
// BF16 terms, so that what is lost is less than a sum in F32 loses.

#include "kernels/cuda/elements.h"
#include "kernels/cuda/latent_tile.h"
#include "kernels/cuda/mla_decode.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kColumns = kTileLora / kWarps;  // of the output, of a warp
constexpr int kScorePitch = kTileKeys + 4;
static_assert(kWarps * 8 == kTileKeys);  // a warp scores 8 keys
static_assert(kLatentGroup % kColumns == 0);
static_assert(kTileKeys == kKeyBlock);

// kTiles: tiles of 16 heads. kTerms: BF16 terms of a query. kStages: blocks of keys in flight.
template <int kTiles, int kTerms, int kStages>
struct TensorShared {
  LatentTile latents[kStages];
  alignas(16) uint16_t q[kTerms][16 * kTiles][kTilePitch];
  alignas(16) float p[16 * kTiles][kScorePitch];  // scores, then exponentials
  LatentScales scales;                            // of FP8
  float best[16 * kTiles];
  float sum[16 * kTiles];
  float factor[16 * kTiles];
};

template <int kTiles, int kTerms, typename Shared>
BATON_DEVICE void StageQueries(const MlaDecodeLaunch& args, int64_t item, int heads,
                               Shared& shared) {
  const int kv_lora = args.pages.kv_lora, rope = args.pages.rope, depth = TileDepth(args.pages);
  for (int i = ThreadIndex(); i < 16 * kTiles * depth; i += kThreads) {
    const int head = i / depth, c = i % depth;
    float value = 0.0f;
    if (head < heads && c < kv_lora) {
      value = LoadElement(args.q_lat, item + head, c);
    } else if (head < heads && c < kv_lora + rope) {
      value = LoadElement(args.q, item + head, args.head - rope + c - kv_lora);
    }
    const Bf16Pair pair = SplitBf16(value);
    shared.q[0][head][c] = pair.high;
    if constexpr (kTerms == 2) shared.q[1][head][c] = pair.low;
  }
  for (int i = ThreadIndex(); i < 16 * kTiles; i += kThreads) {
    shared.best[i] = -INFINITY;
    shared.sum[i] = 0.0f;
  }
}

// d += q . keys over columns [begin, end), steps of 16 ascending; this warp's 8 keys.
template <int kTiles, int kTerms, typename Shared>
BATON_DEVICE void MultiplyKeys(const Shared& shared, const LatentTile& tile, int begin, int end,
                               float (&d)[kTiles][4]) {
  const int lane = Lane();
  for (int c = begin; c < end; c += 32) {
    uint32_t keys[4];
    LoadMatrix4(keys, &tile.keys[8 * Warp() + lane % 8][c + lane / 8 * 8]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t b[2] = {keys[2 * half], keys[2 * half + 1]};
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int term = 0; term < kTerms; ++term) {
          uint32_t a[4];
          LoadRows16(a, &shared.q[term][16 * t][c + 16 * half], kTilePitch);
          MmaBf16(d[t], a, b);
        }
      }
    }
  }
}

template <int kTiles, bool kFp8, int kTerms, typename Shared>
BATON_DEVICE void Score(const MlaDecodeLaunch& args, Shared& shared, const LatentTile& tile,
                        int visible) {
  const int kv_lora = args.pages.kv_lora;
  const int key = 8 * Warp() + Lane() % 4 * 2;
  float d[kTiles][4] = {};
  if constexpr (kFp8) {
    for (int begin = 0; begin < kv_lora; begin += kLatentGroup) {
      float part[kTiles][4] = {};
      MultiplyKeys<kTiles, kTerms>(shared, tile, begin,
                                   begin + kLatentGroup < kv_lora ? begin + kLatentGroup : kv_lora,
                                   part);
#pragma unroll
      for (int i = 0; i < 4 * kTiles; ++i) {
        d[i / 4][i % 4] =
            fmaf(part[i / 4][i % 4], shared.scales.of[key + i % 2][begin / kLatentGroup],
                 d[i / 4][i % 4]);
      }
    }
    MultiplyKeys<kTiles, kTerms>(shared, tile, kv_lora, TileDepth(args.pages), d);
  } else {
    MultiplyKeys<kTiles, kTerms>(shared, tile, 0, TileDepth(args.pages), d);
  }
#pragma unroll
  for (int i = 0; i < 4 * kTiles; ++i) {
    const int row = 16 * (i / 4) + Lane() / 4 + i % 4 / 2 * 8;
    shared.p[row][key + i % 2] =
        key + i % 2 < visible ? d[i / 4][i % 4] * args.scale_log2 : -INFINITY;
  }
}

// One step of the online softmax (Milakov and Gimelshein 2018) for each of this warp's heads.
template <int kTiles, typename Shared>
BATON_DEVICE void SoftmaxStep(Shared& shared) {
#pragma unroll
  for (int i = 0; i < 2 * kTiles; ++i) {
    const int row = Warp() + i * kWarps;
    const float a = shared.p[row][Lane()], b = shared.p[row][Lane() + kWarpSize];
    const float before = shared.best[row];
    const float best = fmaxf(before, WarpMax(fmaxf(a, b)));
    const float shift = best == -INFINITY ? 0.0f : best;
    const float exp_a = Exp2(a - shift), exp_b = Exp2(b - shift);
    shared.p[row][Lane()] = exp_a;
    shared.p[row][Lane() + kWarpSize] = exp_b;
    const float sum = WarpSum(exp_a + exp_b);
    SyncWarp();  // all lanes have read the state
    if (Lane() != 0) continue;
    const float factor = Exp2(before - shift);
    shared.factor[row] = factor;
    shared.best[row] = best;
    shared.sum[row] = fmaf(shared.sum[row], factor, sum);
  }
}

// acc = acc * factor + p . latents for this warp's columns.
template <int kTiles, bool kFp8, typename Shared>
BATON_DEVICE void Weigh(const Shared& shared, const LatentTile& tile, int kv_lora,
                        float (&acc)[kTiles][kColumns / 8][4]) {
  const int lane = Lane(), begin = Warp() * kColumns;
#pragma unroll
  for (int i = 0; i < kTiles * kColumns / 8 * 4; ++i) {
    const int t = i / (kColumns / 2), j = i % 4;
    acc[t][i / 4 % (kColumns / 8)][j] *= shared.factor[16 * t + lane / 4 + j / 2 * 8];
  }
#pragma unroll
  for (int step = 0; step < kTileKeys; step += 16) {
    uint32_t high[kTiles][4], low[kTiles][4];
#pragma unroll
    for (int i = 0; i < 4 * kTiles; ++i) {
      const int row = 16 * (i / 4) + lane / 4 + i % 2 * 8;
      const int key = step + lane % 4 * 2 + i % 4 / 2 * 8;
      float a = shared.p[row][key], b = shared.p[row][key + 1];
      if constexpr (kFp8) {
        a *= shared.scales.of[key][begin / kLatentGroup];
        b *= shared.scales.of[key + 1][begin / kLatentGroup];
      }
      SplitBf16x2(a, b, high[i / 4][i % 4], low[i / 4][i % 4]);
    }
#pragma unroll
    for (int n = 0; n < kColumns / 16; ++n) {
      if (begin + 16 * n >= kv_lora) break;
      uint32_t values[4];
      LoadMatrix4Transposed(
          values, &tile.keys[step + lane / 8 % 2 * 8 + lane % 8][begin + 16 * n + lane / 16 * 8]);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t b[2] = {values[2 * half], values[2 * half + 1]};
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          MmaBf16(acc[t][2 * n + half], high[t], b);
          MmaBf16(acc[t][2 * n + half], low[t], b);
        }
      }
    }
  }
}

template <int kTiles, typename Shared>
BATON_DEVICE void WriteState(const MlaDecodeLaunch& args, const Shared& shared, int64_t state,
                             int heads, const float (&acc)[kTiles][kColumns / 8][4]) {
  const int kv_lora = args.pages.kv_lora;
#pragma unroll
  for (int i = 0; i < kTiles * kColumns / 8 * 2; ++i) {
    const int t = i / (kColumns / 4), n = i / 2 % (kColumns / 8), half = i % 2;
    const int head = 16 * t + Lane() / 4 + half * 8;
    const int column = Warp() * kColumns + 8 * n + Lane() % 4 * 2;
    if (head >= heads || column >= kv_lora) continue;
    float* to = args.part_acc + (state + static_cast<int64_t>(head) * args.splits) * kv_lora;
    to[column] = acc[t][n][2 * half];
    to[column + 1] = acc[t][n][2 * half + 1];
  }
  for (int head = ThreadIndex(); head < heads; head += kThreads) {
    args.part_best[state + static_cast<int64_t>(head) * args.splits] = shared.best[head];
    args.part_sum[state + static_cast<int64_t>(head) * args.splits] = shared.sum[head];
  }
}

template <int kTiles, bool kFp8, int kTerms, int kStages>
BATON_KERNEL(kThreads)
MlaDecodeTensorKernel(const MlaDecodeLaunch args) {
  auto& shared = SharedMemory<TensorShared<kTiles, kTerms, kStages>>();
  const int first_head = BlockY() * 16 * kTiles, split = BlockZ();
  const RowPlace place = FindRow(args.batch, args.first_row + BlockX());
  const int begin = split * kDecodeSplit;
  if (begin >= place.keys) return;  // the whole block
  const int end = place.keys < begin + kDecodeSplit ? place.keys : begin + kDecodeSplit;
  const int heads = args.heads - first_head < 16 * kTiles ? args.heads - first_head : 16 * kTiles;
  const bool aligned = AlignedEntries(args.pages);
  const int blocks = (end - begin + kKeyBlock - 1) / kKeyBlock;
  const auto stage = [&](int block) {
    const int first = begin + block * kKeyBlock;
    if constexpr (kFp8) {
      StageFp8<kThreads>(args.pages, args.batch, aligned, place.sequence, first, end,
                         shared.latents[0], shared.scales);
    } else {
      StageBf16<kThreads>(args.pages, args.batch, aligned, place.sequence, first, end,
                          shared.latents[block % kStages]);
    }
  };
#pragma unroll
  for (int i = 0; i < kStages; ++i) ClearTileEnds<kThreads>(args.pages, shared.latents[i]);
  stage(0);
  CopyAsyncCommit();
  StageQueries<kTiles, kTerms>(args, static_cast<int64_t>(BlockX()) * args.heads + first_head,
                               heads, shared);
  float acc[kTiles][kColumns / 8][4] = {};
  for (int block = 0; block < blocks; ++block) {
    if (kStages == 2 && block + 1 < blocks) stage(block + 1);
    CopyAsyncCommit();
    CopyAsyncWait<kStages == 2 ? 1 : 0>();
    SyncBlock();
    const LatentTile& tile = shared.latents[block % kStages];
    Score<kTiles, kFp8, kTerms>(args, shared, tile, end - begin - block * kKeyBlock);
    SyncBlock();
    SoftmaxStep<kTiles>(shared);
    SyncBlock();
    Weigh<kTiles, kFp8>(shared, tile, args.pages.kv_lora, acc);
    SyncBlock();  // the tile and the exponentials are free
    if (kStages == 1 && block + 1 < blocks) stage(block + 1);
  }
  const int64_t state =
      (static_cast<int64_t>(BlockX()) * args.heads + first_head) * args.splits + split;
  WriteState<kTiles>(args, shared, state, heads, acc);
}

template <int kTiles, bool kFp8, int kTerms, int kStages>
struct Variant {
  static constexpr size_t kBytes = sizeof(TensorShared<kTiles, kTerms, kStages>);

  static cudaError_t Run(const MlaDecodeLaunch& args, cudaStream_t stream) {
    const int tiles = (args.heads + 16 * kTiles - 1) / (16 * kTiles);
    return Launch(MlaDecodeTensorKernel<kTiles, kFp8, kTerms, kStages>,
                  {.grid = dim3(static_cast<unsigned>(args.rows), static_cast<unsigned>(tiles),
                                static_cast<unsigned>(args.splits)),
                   .threads = kThreads,
                   .shared_bytes = kBytes,
                   .stream = stream},
                  args);
  }
};

constexpr size_t kMostAda = 99 * 1024;
constexpr size_t kMostHopper = 227 * 1024;
static_assert(Variant<1, false, 1, 1>::kBytes <= kMostAda);
static_assert(Variant<1, true, 1, 1>::kBytes <= kMostAda);
static_assert(Variant<2, false, 1, 2>::kBytes <= kMostHopper);
static_assert(Variant<1, false, 2, 2>::kBytes <= kMostHopper);
static_assert(Variant<1, true, 2, 1>::kBytes <= kMostHopper);

}  // namespace

bool CanMlaDecodeTensor(const MlaDecodeLaunch& args, int architecture) {
  return FitsLatentTile(args.pages) && args.q.bf16 && (args.q_lat.bf16 || architecture >= 90);
}

cudaError_t LaunchMlaDecodeTensor(const MlaDecodeLaunch& args, int architecture,
                                  cudaStream_t stream) {
  const bool large = architecture >= 90, fp8 = args.pages.format == PageFormat::kFp8;
  if (!args.q_lat.bf16) {
    return fp8 ? Variant<1, true, 2, 1>::Run(args, stream)
               : Variant<1, false, 2, 2>::Run(args, stream);
  }
  if (fp8) {
    return large && args.heads > 16 ? Variant<2, true, 1, 1>::Run(args, stream)
                                    : Variant<1, true, 1, 1>::Run(args, stream);
  }
  if (!large) return Variant<1, false, 1, 1>::Run(args, stream);
  return args.heads > 16 ? Variant<2, false, 1, 2>::Run(args, stream)
                         : Variant<1, false, 1, 2>::Run(args, stream);
}

}  // namespace baton::kernels::cuda
