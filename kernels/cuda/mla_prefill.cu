// Attention in MHA form over expanded keys and values: FlashAttention's loop (Dao et al. 2022), a
// warp for 16 query rows.
//
// Panels of keys and values come through a ring of slots by asynchronous copies, all warps use one
// at a time. Scores stay in registers, become exponentials there and, as two BF16 terms, operand a
// of the product with the values. Products of two terms leave out low x low: what is lost is less
// than a sum in F32 loses.
//
// A row's sums run over key blocks at absolute positions, ascending, and over columns in the order
// of the panels, so they depend on nothing but the row.

#include "kernels/cuda/elements.h"
#include "kernels/cuda/latent_tile.h"
#include "kernels/cuda/mla_prefill.h"
#include "kernels/cuda/panel.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kQueryPanel = kPrefillRows * kPanelColumns;  // elements
constexpr int kCopies = kPanelElements / 8 / kThreads;     // of a thread for a panel
static_assert(kPrefillRows == kThreads / kWarpSize * 16);

constexpr int kValuePanels = 2;  // of a block; more value columns are more blocks

// kQueryPanels: of the rotary columns and the nope columns behind them, at most. kSlots: of the
// ring.
template <int kQueryPanels, int kSlots>
struct PrefillShared {
  alignas(16) uint16_t q[kQueryPanels][kQueryPanel];
  alignas(16) uint16_t ring[kSlots][kPanelElements];
};

template <int kQueryPanels>
constexpr bool FitsPanels(int nope) {
  return 1 + PanelsFor(nope) <= kQueryPanels;
}

// Rows of one sequence, and the keys that they see.
struct QueryTile {
  int sequence;
  int row;   // of the batch, the first
  int rows;  // 0: no such tile
  int keys;  // that the first row sees
  int first_block;

  BATON_DEVICE QueryTile(const Batch& batch, int number) {
    const BatchPiece piece = FindPiece<PieceKind::kQueryTile>(batch, number);
    sequence = piece.sequence;
    first_block = piece.first_block;
    row = rows = keys = 0;
    if (sequence < 0) return;
    const int begin = batch.query_start[sequence], end = batch.query_start[sequence + 1];
    row = begin + piece.index * kPrefillRows;
    rows = Least(kPrefillRows, end - row);
    keys = batch.context_len[sequence] - (end - row) + 1;
  }
};

// The tile's queries of one head: panel 0 has the rotary columns, the others the nope columns;
// zeros behind both, and in rows that the tile has not.
BATON_DEVICE void StageQueries(const MlaPrefillLaunch& args, const QueryTile& tile, int head,
                               uint16_t* q) {
  const int rope = args.pages.rope, chunks = (1 + PanelsFor(args.nope)) * 8;
  const auto* const data = static_cast<const uint16_t*>(args.q.data);
  const bool aligned =
      reinterpret_cast<uintptr_t>(data) % 16 == 0 && args.q.stride % 8 == 0 && args.nope % 8 == 0;
  for (int i = ThreadIndex(); i < kPrefillRows * chunks; i += kThreads) {
    const int row = i / chunks, panel = i % chunks / 8, chunk = i % 8;
    const int c = panel == 0 ? 8 * chunk : (panel - 1) * kPanelColumns + 8 * chunk;
    const int valid = row < tile.rows ? Least(8, (panel == 0 ? rope : args.nope) - c) : 0;
    const uint16_t* from = data;
    if (valid > 0) {
      from += (static_cast<int64_t>(tile.row + row) * args.heads + head) * args.q.stride +
              (panel == 0 ? args.nope : 0) + c;
    }
    uint16_t* const to = q + panel * kQueryPanel + PanelAt(row, chunk);
    if (aligned) {
      CopyAsync16(to, from, valid > 0 ? 2 * valid : 0);
      continue;
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) to[j] = j < valid ? from[j] : uint16_t{0};
  }
}

// The panels that a block uses, in their order: of each key block the rotary keys, the keys' terms,
// the values' terms.
struct PanelStream {
  int key_panels;    // of both terms
  int value_panels;  // of both terms, of this block's columns
  int block;         // of the batch, the next panel's
  int end;           // behind the last block
  int item = 0;      // of the block; 0: rotary keys

  BATON_DEVICE PanelStream(const MlaPrefillLaunch& args, const QueryTile& tile, int blocks)
      : key_panels(2 * PanelsFor(args.nope)),
        value_panels(2 * Least(kValuePanels, PanelsFor(args.v) - BlockZ() * kValuePanels)),
        block(tile.first_block),
        end(tile.first_block + blocks) {}

  // Begins to copy the next panel, if there is one.
  BATON_DEVICE void Load(const MlaPrefillLaunch& args, uint16_t* to) {
    if (block < end) {
      const int64_t row = static_cast<int64_t>(block) * args.group + BlockY();
      const int skipped = item > key_panels ? BlockZ() * 2 * kValuePanels : 0;
      const uint16_t* const from =
          item == 0
              ? args.rotary + static_cast<int64_t>(block) * kPanelElements
              : args.expanded +
                    (row * ExpandedPanels(args.nope, args.v) + item - 1 + skipped) * kPanelElements;
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        const int at = (i * kThreads + ThreadIndex()) * 8;
        CopyAsync16(to + at, from + at);
      }
      if (++item > key_panels + value_panels) {
        item = 0;
        ++block;
      }
    }
    CopyAsyncCommit();
  }
};

// A warp's 16 rows: a thread has rows lane / 4 and 8 behind it.
struct RowState {
  float best[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};  // of this thread's keys
  float acc[kValuePanels][8][4] = {};
};

// scores += q . keys over a panel's 64 columns.
BATON_DEVICE void MultiplyKeys(const uint16_t* q, const uint16_t* keys, float (&scores)[8][4]) {
  const int row = Warp() * 16;
#pragma unroll
  for (int step = 0; step < kPanelColumns / 16; ++step) {
    uint32_t a[4];
    LoadPanelA(a, q, row, step);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      uint32_t b[4];
      LoadPanelB(b, keys, 16 * j, step);
      MmaBf16(scores[2 * j], a, {b[0], b[1]});
      MmaBf16(scores[2 * j + 1], a, {b[2], b[3]});
    }
  }
}

// Exponentials as operand a, two terms.
struct Exponentials {
  uint32_t high[kPanelKeys / 16][4];
  uint32_t low[kPanelKeys / 16][4];
};

// One step of the online softmax (Milakov and Gimelshein 2018). `visible`: keys from the block's
// first on that the thread's first row sees; its second one sees 8 more.
BATON_DEVICE void SoftmaxStep(int visible, float scale, float (&scores)[8][4], RowState& state,
                              Exponentials& p) {
  const int key = Lane() % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float best = -INFINITY;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      float& score = scores[i / 2][2 * half + i % 2];
      score = i / 2 * 8 + key + i % 2 < visible + 8 * half ? score * scale : -INFINITY;
      best = fmaxf(best, score);
    }
    best = fmaxf(best, ShuffleXor(best, 1));
    best = fmaxf(state.best[half], fmaxf(best, ShuffleXor(best, 2)));
    const float shift = best == -INFINITY ? 0.0f : best;
    const float factor = Exp2(state.best[half] - shift);
    state.best[half] = best;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      float& score = scores[i / 2][2 * half + i % 2];
      score = Exp2(score - shift);
      sum += score;
    }
    state.sum[half] = fmaf(state.sum[half], factor, sum);
#pragma unroll
    for (int i = 0; i < kValuePanels * 16; ++i) {
      state.acc[i / 16][i / 2 % 8][2 * half + i % 2] *= factor;
    }
  }
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const float* const pair = &scores[i / 4 * 2 + i % 4 / 2][i % 2 * 2];
    SplitBf16x2(pair[0], pair[1], p.high[i / 4][i % 4], p.low[i / 4][i % 4]);
  }
}

// acc += p . values of a panel: both terms of p with the values' high one, p's high one with the
// values' low one.
template <bool kHighValues>
BATON_DEVICE void Weigh(const Exponentials& p, const uint16_t* values, float (&acc)[8][4]) {
#pragma unroll
  for (int step = 0; step < kPanelKeys / 16; ++step) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      uint32_t b[4];
      LoadPanelBTransposed(b, values, 16 * j, step);
      MmaBf16(acc[2 * j], p.high[step], {b[0], b[1]});
      MmaBf16(acc[2 * j + 1], p.high[step], {b[2], b[3]});
      if constexpr (kHighValues) {
        MmaBf16(acc[2 * j], p.low[step], {b[0], b[1]});
        MmaBf16(acc[2 * j + 1], p.low[step], {b[2], b[3]});
      }
    }
  }
}

BATON_DEVICE void StoreRows(const MlaPrefillLaunch& args, const QueryTile& tile, int head,
                            const RowState& state) {
  auto* const out = static_cast<uint16_t*>(args.out.data);
  const bool pairs = args.v % 2 == 0 && reinterpret_cast<uintptr_t>(out) % 4 == 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = state.sum[half];
    sum += ShuffleXor(sum, 1);
    sum += ShuffleXor(sum, 2);
    const int row = Warp() * 16 + Lane() / 4 + 8 * half;
    if (row >= tile.rows) continue;
    uint16_t* const to =
        out + (static_cast<int64_t>(tile.row + row) * args.heads + head) * args.out.stride;
#pragma unroll
    for (int i = 0; i < kValuePanels * 8; ++i) {
      const int column = BlockZ() * kValuePanels * kPanelColumns + 8 * i + Lane() % 4 * 2;
      const float* const acc = &state.acc[i / 8][i % 8][2 * half];
      // A masked block adds zeros, which turn -0 into 0; so that no other block makes a difference,
      // there is no -0.
      const float values[2] = {acc[0] / sum + 0.0f, acc[1] / sum + 0.0f};
      if (pairs && column < args.v) {
        *reinterpret_cast<Word*>(to + column) = {PackBf16(values[0], values[1])};
      } else {
        if (column < args.v) to[column] = FloatToBf16(values[0]);
        if (column + 1 < args.v) to[column + 1] = FloatToBf16(values[1]);
      }
    }
  }
}

template <int kQueryPanels, int kSlots>
BATON_KERNEL(kThreads)
MlaPrefillKernel(const MlaPrefillLaunch args) {
  auto& shared = SharedMemory<PrefillShared<kQueryPanels, kSlots>>();
  // Tiles with the longest contexts begin first.
  const QueryTile tile(args.batch, GridX() - 1 - BlockX());
  if (tile.rows == 0) return;  // the whole block
  const int head = args.first_head + BlockY();
  const int blocks = (tile.keys + tile.rows - 1 + kPanelKeys - 1) / kPanelKeys;
  // Keys from the next block on that the thread's first row sees, and any row of its warp.
  int visible = tile.keys + Warp() * 16 + Lane() / 4;
  int warp_visible =
      Warp() * 16 < tile.rows ? tile.keys + Least(Warp() * 16 + 16, tile.rows) - 1 : 0;

  StageQueries(args, tile, head, shared.q[0]);
  PanelStream stream(args, tile, blocks);
  const int key_panels = stream.key_panels, value_panels = stream.value_panels;
  int slot = 0;  // of the next panel to use
  for (int i = 0; i < kSlots - 1; ++i) {
    stream.Load(args, shared.ring[i]);  // the first one together with the queries
  }
  const auto next_panel = [&]() -> const uint16_t* {
    CopyAsyncWait<kSlots - 2>();
    SyncBlock();  // the panel is there, and all are done with the one before
    stream.Load(args, shared.ring[slot == 0 ? kSlots - 1 : slot - 1]);
    const uint16_t* const panel = shared.ring[slot];
    slot = slot + 1 == kSlots ? 0 : slot + 1;
    return panel;
  };

  RowState state;
  for (int block = 0; block < blocks; ++block) {
    const bool works = warp_visible > 0;
    float scores[8][4] = {};
#pragma unroll 1
    for (int i = 0; i <= key_panels; ++i) {
      const uint16_t* const panel = next_panel();
      const int q = i <= key_panels / 2 ? i : i - key_panels / 2;
      if (works) MultiplyKeys(shared.q[q], panel, scores);
    }
    Exponentials p;
    if (works) SoftmaxStep(visible, args.scale_log2, scores, state, p);
#pragma unroll
    for (int i = 0; i < kValuePanels; ++i) {
      if (2 * i >= value_panels) break;
      const uint16_t* panel = next_panel();
      if (works) Weigh<true>(p, panel, state.acc[i]);
      panel = next_panel();
      if (works) Weigh<false>(p, panel, state.acc[i]);
    }
    visible -= kPanelKeys;
    warp_visible -= kPanelKeys;
  }
  CopyAsyncWait<0>();
  StoreRows(args, tile, head, state);
}

template <int kQueryPanels, int kSlots>
cudaError_t Run(const MlaPrefillLaunch& args, cudaStream_t stream) {
  static_assert(sizeof(PrefillShared<kQueryPanels, kSlots>) <= 99 * 1024);  // Ada
  const int sequences = args.batch.sequences < args.rows ? args.batch.sequences : args.rows;
  const int64_t tiles = (args.rows + int64_t{sequences} * (kPrefillRows - 1)) / kPrefillRows;
  const int parts = (PanelsFor(args.v) + kValuePanels - 1) / kValuePanels;
  return Launch(MlaPrefillKernel<kQueryPanels, kSlots>,
                {.grid = dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(args.group),
                              static_cast<unsigned>(parts)),
                 .threads = kThreads,
                 .shared_bytes = sizeof(PrefillShared<kQueryPanels, kSlots>),
                 .stream = stream},
                args);
}

}  // namespace

bool CanMlaPrefillTensor(const MlaPrefillLaunch& args) {
  return args.q.bf16 && args.out.bf16 && args.type != GemmType::kF32 &&
         FitsLatentTile(args.pages) && FitsPanels<4>(args.nope);
}

cudaError_t LaunchMlaPrefill(const MlaPrefillLaunch& args, cudaStream_t stream) {
  return FitsPanels<3>(args.nope) ? Run<3, 6>(args, stream) : Run<4, 4>(args, stream);
}

}  // namespace baton::kernels::cuda
