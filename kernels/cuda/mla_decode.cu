// The absorbed form in F32, and the merge of splits that both ways to compute them share.

#include "kernels/cuda/mla_decode.h"

#include "kernels/cuda/elements.h"
#include "kernels/cuda/paged_rows.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kHeads = 8;           // of a block
constexpr int kChunk = 64;          // columns of latents in shared memory at a time
constexpr int kPitch = kChunk + 4;  // neighbouring keys lie in other banks

struct alignas(16) Float4 {
  float at[4];
};

struct PlainShared {
  alignas(16) float keys[kKeyBlock][kPitch];
  alignas(16) float q[kHeads][kPitch];
  alignas(16) float p[kHeads][kDecodeSplit];  // scores, then exponentials
  const uint8_t* entries[kDecodeSplit];
};

// Columns [begin, begin + width) of some keys' latents (`rotary`: of their rotary keys) and of the
// block's queries, zeros behind them up to a multiple of 4.
struct Chunk {
  int begin;
  int width;
  bool rotary;
};

BATON_DEVICE void StageKeys(const Pages& pages, const Chunk& chunk, int first, int visible,
                            PlainShared& shared) {
  constexpr int kQuads = kChunk / 4;
#pragma unroll 1
  for (int i = ThreadIndex(); i < kKeyBlock * kQuads; i += kThreads) {
    const int key = i / kQuads, c = i % kQuads * 4;
    if (c >= chunk.width) continue;
    Float4 values = {};
    if (first + key < visible) {
      const uint8_t* entry = shared.entries[first + key];
      if (chunk.rotary) {
#pragma unroll
        for (int j = 0; j < 4; j += 2) {  // rope is even
          if (c + j >= chunk.width) continue;
          values.at[j] = LoadRotary(pages, entry, chunk.begin + c + j);
          values.at[j + 1] = LoadRotary(pages, entry, chunk.begin + c + j + 1);
        }
      } else {
        LoadLatents(pages, entry, chunk.begin + c, values.at);
      }
    }
    *reinterpret_cast<Float4*>(&shared.keys[key][c]) = values;
  }
}

BATON_DEVICE void StageQueries(const MlaDecodeLaunch& args, const Chunk& chunk, int64_t item,
                               int heads, PlainShared& shared) {
#pragma unroll 1
  for (int i = ThreadIndex(); i < kHeads * kChunk; i += kThreads) {
    const int head = i / kChunk, c = i % kChunk;
    float value = 0.0f;
    if (head < heads && c < chunk.width) {
      value = chunk.rotary
                  ? LoadElement(args.q, item + head, args.head - args.pages.rope + chunk.begin + c)
                  : LoadElement(args.q_lat, item + head, chunk.begin + c);
    }
    shared.q[head][c] = value;
  }
}

BATON_DEVICE Chunk ChunkAt(const Pages& pages, int index) {
  const int latents = (pages.kv_lora + kChunk - 1) / kChunk;
  const bool rotary = index >= latents;
  const int begin = (rotary ? index - latents : index) * kChunk;
  const int end = rotary ? pages.rope : pages.kv_lora;
  return {begin, end - begin < kChunk ? end - begin : kChunk, rotary};
}

// Scores of the split's visible keys, each a sum over columns in ascending order. A thread has two
// heads and two keys.
BATON_DEVICE void Score(const MlaDecodeLaunch& args, int64_t item, int heads, int visible,
                        PlainShared& shared) {
  const int chunks =
      (args.pages.kv_lora + kChunk - 1) / kChunk + (args.pages.rope + kChunk - 1) / kChunk;
  const int head = 2 * Warp(), key = Lane();
  for (int first = 0; first < visible; first += kKeyBlock) {
    float sums[2][2] = {};
    for (int index = 0; index < chunks; ++index) {
      const Chunk chunk = ChunkAt(args.pages, index);
      SyncBlock();
      StageKeys(args.pages, chunk, first, visible, shared);
      StageQueries(args, chunk, item, heads, shared);
      SyncBlock();
      if (head >= heads) continue;
#pragma unroll 1
      for (int c = 0; c < chunk.width; c += 4) {
        Float4 q[2], k[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          q[i] = *reinterpret_cast<const Float4*>(&shared.q[head + i][c]);
          k[i] = *reinterpret_cast<const Float4*>(&shared.keys[key + 32 * i][c]);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            sums[i / 2][i % 2] = fmaf(q[i / 2].at[j], k[i % 2].at[j], sums[i / 2][i % 2]);
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = first + key + 32 * (i % 2);
      shared.p[head + i / 2][at] = at < visible ? sums[i / 2][i % 2] * args.scale_log2 : -INFINITY;
    }
  }
}

// Scores to exponentials; a warp has two heads.
BATON_DEVICE void Exponentiate(const MlaDecodeLaunch& args, int64_t state, int heads, int visible,
                               PlainShared& shared) {
  for (int head = Warp(); head < heads; head += kWarps) {
    float best = -INFINITY;
    const int padded = (visible + kKeyBlock - 1) / kKeyBlock * kKeyBlock;
#pragma unroll 1
    for (int i = Lane(); i < padded; i += kWarpSize) best = fmaxf(best, shared.p[head][i]);
    best = WarpMax(best);
    const float shift = best == -INFINITY ? 0.0f : best;
    float sum = 0.0f;
#pragma unroll 1
    for (int i = Lane(); i < padded; i += kWarpSize) {
      const float p = Exp2(shared.p[head][i] - shift);
      shared.p[head][i] = p;
      sum += p;
    }
    sum = WarpSum(sum);
    if (Lane() == 0) {
      args.part_best[state + static_cast<int64_t>(head) * args.splits] = best;
      args.part_sum[state + static_cast<int64_t>(head) * args.splits] = sum;
    }
  }
}

// Exponentials times latents, keys ascending. A thread has two heads and two columns.
BATON_DEVICE void Weigh(const MlaDecodeLaunch& args, int64_t state, int heads, int visible,
                        PlainShared& shared) {
  const int head = 2 * Warp(), column = 2 * Lane();
  for (int begin = 0; begin < args.pages.kv_lora; begin += kChunk) {
    const Chunk chunk = ChunkAt(args.pages, begin / kChunk);
    float sums[2][2] = {};
    for (int first = 0; first < visible; first += kKeyBlock) {
      SyncBlock();
      StageKeys(args.pages, chunk, first, visible, shared);
      SyncBlock();
      if (head >= heads || column >= chunk.width) continue;
#pragma unroll 1
      for (int key = 0; key < kKeyBlock; key += 4) {
        const Float4 p[2] = {*reinterpret_cast<const Float4*>(&shared.p[head][first + key]),
                             *reinterpret_cast<const Float4*>(&shared.p[head + 1][first + key])};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float v[2] = {shared.keys[key + j][column], shared.keys[key + j][column + 1]};
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            sums[i / 2][i % 2] = fmaf(p[i / 2].at[j], v[i % 2], sums[i / 2][i % 2]);
          }
        }
      }
    }
    if (column >= chunk.width) continue;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (head + i / 2 >= heads) continue;
      const int64_t to = state + static_cast<int64_t>(head + i / 2) * args.splits;
      args.part_acc[to * args.pages.kv_lora + begin + column + i % 2] = sums[i / 2][i % 2];
    }
  }
}

BATON_KERNEL(kThreads) MlaDecodePlainKernel(const MlaDecodeLaunch args) {
  auto& shared = SharedMemory<PlainShared>();
  const int first_head = BlockY() * kHeads, split = BlockZ();
  const RowPlace place = FindRow(args.batch, args.first_row + BlockX());
  const int begin = split * kDecodeSplit;
  if (begin >= place.keys) return;  // the whole block
  const int left = place.keys - begin;
  const int visible = left < kDecodeSplit ? left : kDecodeSplit;
  const int heads = args.heads - first_head < kHeads ? args.heads - first_head : kHeads;
  for (int i = ThreadIndex(); i < visible; i += kThreads) {
    shared.entries[i] = EntryAt(args.pages, args.batch, place.sequence, begin + i);
  }
  const int64_t item = static_cast<int64_t>(BlockX()) * args.heads + first_head;
  const int64_t state =
      (static_cast<int64_t>(BlockX()) * args.heads + first_head) * args.splits + split;
  Score(args, item, heads, visible, shared);
  SyncBlock();
  Exponentiate(args, state, heads, visible, shared);
  Weigh(args, state, heads, visible, shared);  // begins with a barrier
}

BATON_KERNEL(kThreads) MlaDecodeMergeKernel(const MlaDecodeLaunch args) {
  const int head = BlockY();
  const int keys = FindRow(args.batch, args.first_row + BlockX()).keys;
  const int split_keys = SplitKeys(args.long_split, keys);
  const int splits = (keys + split_keys - 1) / split_keys;
  const int64_t state = (static_cast<int64_t>(BlockX()) * args.heads + head) * args.splits;
  const int kv_lora = args.pages.kv_lora;
  for (int c = ThreadIndex(); c < kv_lora; c += kThreads) {
    float best = -INFINITY, sum = 0.0f, acc = 0.0f;
    for (int s = 0; s < splits; ++s) {
      const float part_best = args.part_best[state + s];
      const float high = fmaxf(best, part_best);
      const float shift = high == -INFINITY ? 0.0f : high;
      const float keep = Exp2(best - shift), take = Exp2(part_best - shift);
      best = high;
      sum = fmaf(args.part_sum[state + s], take, sum * keep);
      acc = fmaf(args.part_acc[(state + s) * kv_lora + c], take, acc * keep);
    }
    StoreElement(args.out, static_cast<int64_t>(BlockX()) * args.heads + head, c, acc / sum);
  }
}

}  // namespace

cudaError_t LaunchMlaDecodePlain(const MlaDecodeLaunch& args, cudaStream_t stream) {
  const int tiles = (args.heads + kHeads - 1) / kHeads;
  return Launch(MlaDecodePlainKernel,
                {.grid = dim3(static_cast<unsigned>(args.rows), static_cast<unsigned>(tiles),
                              static_cast<unsigned>(args.splits)),
                 .threads = kThreads,
                 .shared_bytes = sizeof(PlainShared),
                 .stream = stream},
                args);
}

cudaError_t LaunchMlaDecodeMerge(const MlaDecodeLaunch& args, cudaStream_t stream) {
  return Launch(MlaDecodeMergeKernel,
                {.grid = dim3(static_cast<unsigned>(args.rows), static_cast<unsigned>(args.heads)),
                 .threads = kThreads,
                 .stream = stream},
                args);
}

}  // namespace baton::kernels::cuda
