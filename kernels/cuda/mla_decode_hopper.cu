// The absorbed form for Hopper, by matrix instructions of warpgroups: 64 heads of one row are the
// rows of operand a. For sm_90a alone.
//
// A thread fetches blocks of 64 keys. Two warpgroups each score all 64 keys for all 64 heads, so
// that the exponentials stay in the registers in which they are operands of the weighing; then each
// weighs half of the 512 columns, which is what its registers can sum. Scoring twice costs 2304 of
// 4352 cycles of matrix instructions for a block, in which an H100's memory delivers less than the
// next one of BF16 keys.
//
// Latents enter exactly, exponentials as two BF16 terms (latent_tile.h).

#include <algorithm>

#include "kernels/cuda/elements.h"
#include "kernels/cuda/latent_tile.h"
#include "kernels/cuda/mla_decode.h"
#include "kernels/cuda/tensor_map.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kLora = 512, kRope = 64;
constexpr int kHeads = 64;                     // of a block
constexpr int kChunks = (kLora + kRope) / 64;  // 128 bytes of a key's row each
constexpr int kChunkBytes = kTileKeys * 128;   // of a chunk of all keys, or of all heads
constexpr int kGroups = kLora / kLatentGroup;  // of an FP8 entry, with a scale each
constexpr int kSides = 2;                      // warpgroups that compute
constexpr int kComputing = kSides * 4 * kWarpSize;
constexpr int kThreads = kComputing + 4 * kWarpSize;  // and a warpgroup of which one fetches
constexpr int kFetchRegisters = 24, kComputeRegisters = 240;
constexpr int kHalf = kLora / kSides / 2;  // columns of one instruction that weighs
constexpr int kStages = 2;
constexpr int kFp8Bytes = kLora + kGroups * 4 + kRope * 2;  // of an entry
constexpr int kBarrier = 1;                                 // SyncSome's, of those that compute
static_assert(kTileKeys == kKeyBlock && kHeads == kTileKeys);
static_assert(kHalf == kLatentGroup);

struct alignas(1024) Chunk {
  unsigned char bytes[kChunkBytes];
};

template <bool kFp8>
struct HopperShared;
template <>
struct HopperShared<false> {
  Chunk q[kChunks];
  Chunk keys[kStages][kChunks];
  TransactionBarrier full[kStages], empty[kStages];
};
template <>
struct HopperShared<true> {
  Chunk q[kChunks];
  Chunk keys[1][kChunks];
  alignas(16) unsigned char entries[kStages][kTileKeys][kFp8Bytes];  // as pages hold them
  TransactionBarrier full[kStages], empty[kStages];
};

struct HopperLaunch {
  MlaDecodeLaunch decode;
  TensorMap keys;  // of BF16 pages: columns of an entry, tokens of a page, pages
};

// What a block of the grid computes.
struct Piece {
  int sequence;
  int begin, end;  // keys
  int first_head, heads;
  int64_t item;   // row of q_lat and q of the first head
  int64_t state;  // of the first head
};

BATON_DEVICE void Store16(Chunk* chunks, int row, int byte, const Words4& value) {
  *reinterpret_cast<Words4*>(&chunks[byte / 128].bytes[SwizzledByte(row, byte % 128)]) = value;
}

// --- the thread that fetches

template <bool kFp8>
BATON_DEVICE void FetchBlock(const HopperLaunch& args, const Piece& piece, int block,
                             HopperShared<kFp8>& shared) {
  const Pages& pages = args.decode.pages;
  const int stage = block % kStages, first = piece.begin + block * kTileKeys;
  const int visible = Least(kTileKeys, piece.end - first);
  TransactionBarrier* const full = &shared.full[stage];
  const int rows = Least(kTileKeys, pages.page_tokens);
  const int parts = (visible + rows - 1) / rows;
  ArriveExpecting(full, kFp8 ? visible * kFp8Bytes : parts * rows * 128 * kChunks);
  for (int part = 0; part < parts; ++part) {
    const int position = first + part * rows;
    const Batch& batch = args.decode.batch;
    const int page =
        batch.page_table[piece.sequence * batch.table_stride + position / pages.page_tokens];
    const int token = position % pages.page_tokens;
    if constexpr (kFp8) {
      CopyBulk(shared.entries[stage][part * rows],
               pages.data + page * pages.page_bytes + token * kFp8Bytes,
               Least(rows, visible - part * rows) * kFp8Bytes, full);
    } else {
      for (int c = 0; c < kChunks; ++c) {
        CopyTensor(&shared.keys[stage][c].bytes[part * rows * 128], &args.keys, 64 * c, token, page,
                   full);
      }
    }
  }
}

template <bool kFp8>
BATON_DEVICE void FetchAll(const HopperLaunch& args, const Piece& piece, int blocks,
                           HopperShared<kFp8>& shared) {
  for (int block = 0; block < blocks; ++block) {
    if (block >= kStages) {
      AwaitTransaction(&shared.empty[block % kStages], (block / kStages - 1) % 2);
    }
    FetchBlock<kFp8>(args, piece, block, shared);
  }
}

// --- those that compute

// The heads' queries, 16 bytes at a time; heads behind the last one are zeros.
BATON_DEVICE void StageQueries(const MlaDecodeLaunch& args, const Piece& piece, Chunk* chunks) {
  constexpr int kPieces = (kLora + kRope) / 8;
#pragma unroll 1
  for (int i = ThreadIndex(); i < kHeads * kPieces; i += kComputing) {
    const int head = i / kPieces, column = i % kPieces * 8;
    Words4 value = {};
    if (head < piece.heads) {
      const bool rotary = column >= kLora;
      const Rows& rows = rotary ? args.q : args.q_lat;
      const int at = rotary ? args.head - kRope + column - kLora : column;
      value = *reinterpret_cast<const Words4*>(static_cast<const uint16_t*>(rows.data) +
                                               (piece.item + head) * rows.stride + at);
    }
    Store16(chunks, head, 2 * column, value);
  }
}

// Keys behind the last visible one become zeros.
BATON_DEVICE void ClearKeys(int visible, Chunk* chunks) {
  constexpr int kPieces = kChunks * 8;
#pragma unroll 1
  for (int i = visible * kPieces + ThreadIndex(); i < kTileKeys * kPieces; i += kComputing) {
    Store16(chunks, i / kPieces, i % kPieces * 16, {});
  }
}

// FP8 entries to BF16: codes without their scales, rotary values as they are. A thread has a
// quarter of a key.
BATON_DEVICE void WidenKeys(const unsigned char (*entries)[kFp8Bytes], int visible, Chunk* chunks) {
  constexpr int kSharers = kComputing / kTileKeys;
  const int key = ThreadIndex() / kSharers, part = ThreadIndex() % kSharers;
  const unsigned char* const entry = entries[key];
#pragma unroll 2
  for (int i = part; i < kLora / 16; i += kSharers) {
    Words4 codes = {};
    if (key < visible) codes = *reinterpret_cast<const Words4*>(entry + 16 * i);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Words4 values;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        uint32_t pairs[2];
        E4M3ToBf16(codes.at[2 * half + j], pairs);
        values.at[2 * j] = pairs[0];
        values.at[2 * j + 1] = pairs[1];
      }
      Store16(chunks, key, 32 * i + 16 * half, values);
    }
  }
#pragma unroll
  for (int i = part; i < kRope / 8; i += kSharers) {
    Words4 values = {};
    if (key < visible) {
      values = *reinterpret_cast<const Words4*>(entry + kLora + 4 * kGroups + 16 * i);
    }
    Store16(chunks, key, 2 * kLora + 16 * i, values);
  }
}

// A lane's 32 of 64 heads x 64 keys; element i is of key KeyOf(i), and of row Lane() / 4 of its
// warp or, where i % 4 is 2 or 3, eight rows below.
using Scores = float[32];
BATON_DEVICE int KeyOf(int i) { return i / 4 * 8 + Lane() % 4 * 2 + i % 2; }

BATON_DEVICE float ScaleOf(const unsigned char (*entries)[kFp8Bytes], int key, int group,
                           int visible) {
  if (key >= visible) return 0.0f;
  return *reinterpret_cast<const float*>(entries[key] + kLora + 4 * group);
}

// s = q . keys over kCount chunks, with kAdd added to what s holds; steps of 16 columns ascending.
template <int kCount, bool kAdd>
BATON_DEVICE void MultiplyChunks(const Chunk* q, const Chunk* keys, Scores& s) {
  GroupMmaFence(s);
#pragma unroll
  for (int c = 0; c < kCount; ++c) {
#pragma unroll
    for (int byte = 0; byte < 128; byte += 32) {
      GroupMmaBf16<kTileKeys>(s, RowsAt(&q[c], byte), RowsAt(&keys[c], byte),
                              kAdd || c > 0 || byte > 0);
    }
  }
  GroupMmaCommit();
  GroupMmaWait<0>(s);
}

BATON_DEVICE void Score(const HopperShared<false>& shared, int stage, int, Scores& s) {
  MultiplyChunks<kChunks, false>(shared.q, shared.keys[stage], s);
}
BATON_DEVICE void Score(const HopperShared<true>& shared, int stage, int visible, Scores& s) {
  constexpr int kGroupChunks = kLatentGroup / 64;
#pragma unroll
  for (int i = 0; i < 32; ++i) s[i] = 0.0f;
#pragma unroll 1
  for (int group = 0; group < kGroups; ++group) {
    Scores part;
    MultiplyChunks<kGroupChunks, false>(shared.q + group * kGroupChunks,
                                        shared.keys[0] + group * kGroupChunks, part);
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      s[i] = fmaf(part[i], ScaleOf(shared.entries[stage], KeyOf(i), group, visible), s[i]);
    }
  }
  constexpr int kRotary = kGroups * kGroupChunks;
  MultiplyChunks<kChunks - kRotary, true>(shared.q + kRotary, shared.keys[0] + kRotary, s);
}

// What a lane knows of its two rows; the four lanes of a row have the same, but for their part of
// the sum.
struct RowStates {
  float best[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};
};

// Scores to exponentials: one step of the online softmax (Milakov and Gimelshein 2018). `factor`:
// what sums so far are multiplied with.
BATON_DEVICE void SoftmaxStep(float scale, int visible, Scores& s, RowStates& states,
                              float (&factor)[2]) {
#pragma unroll
  for (int i = 0; i < 32; ++i) s[i] = KeyOf(i) < visible ? s[i] * scale : -INFINITY;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float best = states.best[r];
#pragma unroll
    for (int i = 0; i < 32; i += 4) best = fmaxf(best, fmaxf(s[i + 2 * r], s[i + 2 * r + 1]));
    best = fmaxf(best, ShuffleXor(best, 1));
    best = fmaxf(best, ShuffleXor(best, 2));
    const float shift = best == -INFINITY ? 0.0f : best;
    factor[r] = Exp2(states.best[r] - shift);
    states.best[r] = best;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      if (i % 4 / 2 != r) continue;
      s[i] = Exp2(s[i] - shift);
      sum += s[i];
    }
    states.sum[r] = fmaf(states.sum[r], factor[r], sum);
  }
}

// A lane's sums of 128 columns.
using Sums = float[kHalf / 2];

// Operand a of 64 keys: exponentials in two terms.
struct Terms {
  uint32_t high[4][4], low[4][4];
};

// acc += terms . latents of 128 columns, keys ascending.
BATON_DEVICE void MultiplyLatents(const Chunk* keys, const Terms& terms, Sums& acc) {
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const OperandByColumns latents = ColumnsAt(keys->bytes + step * 2048, kChunkBytes);
    GroupMmaBf16<kHalf>(acc, terms.high[step], latents, true);
    GroupMmaBf16<kHalf>(acc, terms.low[step], latents, true);
  }
}

BATON_DEVICE void Rescale(const float (&factor)[2], Sums& acc) {
#pragma unroll
  for (int i = 0; i < kHalf / 2; ++i) acc[i] *= factor[i % 4 / 2];
}

// acc = acc * factor + p . latents, this warpgroup's columns in two halves.
BATON_DEVICE void Weigh(const HopperShared<false>& shared, int stage, int, const Scores& p,
                        const float (&factor)[2], Sums (&acc)[2]) {
  const Chunk* const keys = &shared.keys[stage][Warp() / 4 * 4];
  Terms terms;
#pragma unroll
  for (int i = 0; i < 32; i += 2) {
    SplitBf16x2(p[i], p[i + 1], terms.high[i / 8][i % 8 / 2], terms.low[i / 8][i % 8 / 2]);
  }
  Rescale(factor, acc[0]);
  Rescale(factor, acc[1]);
  GroupMmaFence(acc, terms.high, terms.low);
  MultiplyLatents(keys, terms, acc[0]);
  MultiplyLatents(keys + 2, terms, acc[1]);
  GroupMmaCommit();
  GroupMmaWait<0>(acc, terms.high, terms.low);
}
// With the scales of a half's group in its exponentials.
BATON_DEVICE void Weigh(const HopperShared<true>& shared, int stage, int visible, const Scores& p,
                        const float (&factor)[2], Sums (&acc)[2]) {
  Terms terms;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int group = Warp() / 4 * 2 + half;
#pragma unroll
    for (int i = 0; i < 32; i += 2) {
      SplitBf16x2(p[i] * ScaleOf(shared.entries[stage], KeyOf(i), group, visible),
                  p[i + 1] * ScaleOf(shared.entries[stage], KeyOf(i + 1), group, visible),
                  terms.high[i / 8][i % 8 / 2], terms.low[i / 8][i % 8 / 2]);
    }
    Rescale(factor, acc[half]);
    GroupMmaFence(acc[half], terms.high, terms.low);
    MultiplyLatents(&shared.keys[0][2 * group], terms, acc[half]);
    GroupMmaCommit();
    GroupMmaWait<0>(acc[half], terms.high, terms.low);
  }
}

template <bool kFp8>
BATON_DEVICE void PrepareKeys(HopperShared<kFp8>& shared, int stage, int visible) {
  if constexpr (kFp8) {
    SyncSome(kBarrier, kComputing);  // all have done with the block before
    WidenKeys(shared.entries[stage], visible, shared.keys[0]);
  } else {
    if (visible == kTileKeys) return;
    ClearKeys(visible, shared.keys[stage]);
  }
  FenceAsyncProxy();
  SyncSome(kBarrier, kComputing);
}

BATON_DEVICE void WriteState(const MlaDecodeLaunch& args, const Piece& piece,
                             const RowStates& states, const Sums (&acc)[2]) {
  const int side = Warp() / 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = states.sum[r];
    sum += ShuffleXor(sum, 1);
    sum += ShuffleXor(sum, 2);
    const int head = Warp() % 4 * 16 + Lane() / 4 + 8 * r;
    if (head >= piece.heads) continue;
    const int64_t state = piece.state + static_cast<int64_t>(head) * args.splits;
    if (side == 0 && Lane() % 4 == 0) {
      args.part_best[state] = states.best[r];
      args.part_sum[state] = sum;
    }
    float* const to = args.part_acc + state * kLora + side * 2 * kHalf + Lane() % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < kHalf / 8; ++i) {
        to[half * kHalf + 8 * i] = acc[half][4 * i + 2 * r];
        to[half * kHalf + 8 * i + 1] = acc[half][4 * i + 2 * r + 1];
      }
    }
  }
}

template <bool kFp8>
BATON_DEVICE void Compute(const HopperLaunch& args, const Piece& piece, int blocks,
                          HopperShared<kFp8>& shared) {
  StageQueries(args.decode, piece, shared.q);
  FenceAsyncProxy();
  SyncSome(kBarrier, kComputing);
  Sums acc[2] = {};
  RowStates states;
#pragma unroll 1
  for (int block = 0; block < blocks; ++block) {
    const int stage = block % kStages;
    const int visible = Least(kTileKeys, piece.end - piece.begin - block * kTileKeys);
    AwaitTransaction(&shared.full[stage], block / kStages % 2);
    PrepareKeys<kFp8>(shared, stage, visible);
    Scores s;
    float factor[2];
    Score(shared, stage, visible, s);
    SoftmaxStep(args.decode.scale_log2, visible, s, states, factor);
    Weigh(shared, stage, visible, s, factor, acc);
    SyncWarp();
    if (Lane() == 0) Arrive(&shared.empty[stage]);
  }
  WriteState(args.decode, piece, states, acc);
}

template <bool kFp8>
BATON_KERNEL(kThreads)
MlaDecodeHopperKernel(BATON_GRID_CONSTANT const HopperLaunch args) {
  auto& shared = SharedMemory<HopperShared<kFp8>>();
  if (!kFp8 && ThreadIndex() == kComputing) PrefetchTensorMap(&args.keys);
  const MlaDecodeLaunch& decode = args.decode;
  const RowPlace place = FindRow(decode.batch, decode.first_row + BlockX());
  const int split_keys = SplitKeys(decode.long_split, place.keys);
  const int begin = BlockZ() * split_keys;
  if (begin >= place.keys) return;  // the whole block
  const int first_head = BlockY() * kHeads;
  const int64_t item = static_cast<int64_t>(BlockX()) * decode.heads + first_head;
  const Piece piece{.sequence = place.sequence,
                    .begin = begin,
                    .end = Least(place.keys, begin + split_keys),
                    .first_head = first_head,
                    .heads = Least(kHeads, decode.heads - first_head),
                    .item = item,
                    .state = item * decode.splits + BlockZ()};
  if (ThreadIndex() == 0) {
#pragma unroll
    for (int i = 0; i < kStages; ++i) {
      InitTransaction(&shared.full[i], 1);
      InitTransaction(&shared.empty[i], kComputing / kWarpSize);
    }
  }
  SyncBlock();
  const int blocks = (piece.end - piece.begin + kTileKeys - 1) / kTileKeys;
  if (ThreadIndex() >= kComputing) {
    GiveRegisters<kFetchRegisters>();
    if (ThreadIndex() == kComputing) FetchAll<kFp8>(args, piece, blocks, shared);
  } else {
    TakeRegisters<kComputeRegisters>();
    Compute<kFp8>(args, piece, blocks, shared);
  }
}

template <bool kFp8>
cudaError_t LaunchWith(const HopperLaunch& args, cudaStream_t stream) {
  static_assert(sizeof(HopperShared<kFp8>) <= 227 * 1024);
  const MlaDecodeLaunch& decode = args.decode;
  const int tiles = (decode.heads + kHeads - 1) / kHeads;
  return Launch(MlaDecodeHopperKernel<kFp8>,
                {.grid = dim3(static_cast<unsigned>(decode.rows), static_cast<unsigned>(tiles),
                              static_cast<unsigned>(decode.splits)),
                 .threads = kThreads,
                 .shared_bytes = sizeof(HopperShared<kFp8>),
                 .stream = stream},
                args);
}

// Of BF16 pages.
TensorShape KeysOf(const Pages& pages) {
  return {.data = pages.data,
          .columns = kLora + kRope,
          .rows = pages.page_tokens,
          .layers = pages.count,
          .row_bytes = pages.entry_bytes,
          .layer_bytes = pages.page_bytes,
          .box_rows = std::min(kTileKeys, pages.page_tokens)};
}

// Rows that can be read 16 bytes at a time, from column `column` on.
bool AlignedRows(const Rows& rows, int column) {
  return rows.bf16 && (reinterpret_cast<uintptr_t>(rows.data) | (2 * rows.stride)) % 16 == 0 &&
         column % 8 == 0;
}

}  // namespace

bool CanMlaDecodeHopper(const MlaDecodeLaunch& args) {
  const Pages& pages = args.pages;
  const bool whole_blocks = pages.page_tokens % kTileKeys == 0 ||
                            (pages.page_tokens % 8 == 0 && kTileKeys % pages.page_tokens == 0);
  return pages.kv_lora == kLora && pages.rope == kRope && pages.format != PageFormat::kF32 &&
         whole_blocks && pages.page_bytes % 16 == 0 &&
         (pages.format == PageFormat::kFp8 || FitsTensorMap(KeysOf(pages))) &&
         reinterpret_cast<uintptr_t>(pages.data) % 16 == 0 && AlignedRows(args.q_lat, 0) &&
         AlignedRows(args.q, args.head - kRope);
}

cudaError_t LaunchMlaDecodeHopper(const MlaDecodeLaunch& args, cudaStream_t stream) {
  HopperLaunch launch{.decode = args, .keys = {}};
  if (args.pages.format == PageFormat::kFp8) return LaunchWith<true>(launch, stream);
  const cudaError_t made = MakeTensorMap(KeysOf(args.pages), &launch.keys);
  return made == cudaSuccess ? LaunchWith<false>(launch, stream) : made;
}

}  // namespace baton::kernels::cuda
