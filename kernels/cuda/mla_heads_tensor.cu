// Queries of each head to latents by matrix instructions: a block has 64 rows and 64 latents of one
// head, a warp 16 of the rows.
//
// A sum is a chain over the head's nope values in steps of 16, ascending. With block scales, which
// change along these rows of kv_b, one such chain for each block, scaled and added by one
// multiply-add; a block may end within a step, which then runs once for each of the two with the
// other's rows as zeros.

#include "kernels/cuda/elements.h"
#include "kernels/cuda/mla_heads.h"
#include "kernels/cuda/panel.h"
#include "kernels/cuda/weight_panel.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = 64;
constexpr int kColumns = kPanelColumns;
constexpr int kStages = 2;
static_assert(kRows == kThreads / kWarpSize * 16);
static_assert(kRows == kPanelKeys);

struct HeadsShared {
  struct Stage {
    alignas(16) uint16_t q[kPanelElements];  // rows x 64 nope values
    alignas(16) uint16_t w[kPanelElements];  // 64 rows of kv_b x latents
  } stages[kStages];
};

using Sums = float[8][4];  // a warp's 16 rows x 64 latents

// Values [begin, begin + 64) of the head's queries, zeros behind the nope values and the rows.
BATON_DEVICE void StageQueries(const MlaHeadsLaunch& args, int row, int begin, uint16_t* to) {
  const auto* const data = static_cast<const uint16_t*>(args.q.data);
  const bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0 && args.q.stride % 8 == 0;
#pragma unroll
  for (int i = 0; i < kPanelElements / 8 / kThreads; ++i) {
    const int at = i * kThreads + ThreadIndex();
    const int r = row + at / 8, c = begin + at % 8 * 8;
    const int valid = r < args.rows ? Least(8, args.nope - c) : 0;
    const uint16_t* from = data;
    if (valid > 0) from += (static_cast<int64_t>(r) * args.heads + BlockY()) * args.q.stride + c;
    uint16_t* const place = to + PanelAt(at / 8, at % 8);
    if (aligned) {
      CopyAsync16(place, from, valid > 0 ? 2 * valid : 0);
      continue;
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) place[j] = j < valid ? from[j] : uint16_t{0};
  }
}

// sums += q w of step `step`, of which rows [from, to) of w count.
BATON_DEVICE void Multiply(const HeadsShared::Stage& stage, int step, int from, int to,
                           Sums& sums) {
  uint32_t a[4];
  LoadPanelA(a, stage.q, Warp() * 16, step);
  // A word of operand b has two rows.
  uint32_t mask[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = Lane() % 4 * 2 + i / 2 * 8 + i % 2;
    if (from <= row && row < to) mask[i / 2] |= 0xFFFFu << 16 * (i % 2);
  }
#pragma unroll
  for (int j = 0; j < kColumns / 16; ++j) {
    uint32_t b[4];
    LoadPanelBTransposed(b, stage.w, 16 * j, step);
    MmaBf16(sums[2 * j], a, {b[0] & mask[0], b[1] & mask[1]});
    MmaBf16(sums[2 * j + 1], a, {b[2] & mask[0], b[3] & mask[1]});
  }
}

// Where block scales change along a head's rows of kv_b.
struct ScaleBlocks {
  int first;  // row of the first block's count that is the head's row 0
  int block;  // the one in use
  int end;    // the head's row behind it

  BATON_DEVICE explicit ScaleBlocks(const MlaHeadsLaunch& args)
      : first(args.kv_b.first_row + BlockY() * args.per_head),
        block(first / args.block_n),
        end((block + 1) * args.block_n - first) {}

  // total += sums * the block's scale; sums = 0; on to the next block.
  BATON_DEVICE void Promote(const MlaHeadsLaunch& args, Sums& sums, Sums& total) {
    const int64_t k_blocks = (args.kv_lora + args.block_k - 1) / args.block_k;
    const float scale = args.kv_b.scales[block * k_blocks + BlockZ() * kColumns / args.block_k];
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      total[i / 4][i % 4] = fmaf(sums[i / 4][i % 4], scale, total[i / 4][i % 4]);
      sums[i / 4][i % 4] = 0.0f;
    }
    ++block;
    end += args.block_n;
  }
};

BATON_DEVICE void StoreSums(const MlaHeadsLaunch& args, int row, const Sums& sums) {
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const int r = row + Warp() * 16 + Lane() / 4 + i % 4 / 2 * 8;
    const int column = BlockZ() * kColumns + i / 4 * 8 + Lane() % 4 * 2 + i % 2;
    if (r >= args.rows || column >= args.kv_lora) continue;
    StoreElement(args.out, static_cast<int64_t>(r) * args.heads + BlockY(), column,
                 sums[i / 4][i % 4]);
  }
}

template <bool kFp8>
BATON_KERNEL(kThreads)
MlaHeadsTensorKernel(const MlaHeadsLaunch args) {
  auto& shared = SharedMemory<HeadsShared>();
  const int row = BlockX() * kRows;
  const bool works = row + Warp() * 16 < args.rows;
  const int panels = PanelsFor(args.nope);
  WeightPanelStager<kFp8, kThreads> stager(args.kv_b, args.kv_lora);
  const auto fetch = [&](int panel) {
    HeadsShared::Stage& stage = shared.stages[panel % kStages];
    const int begin = panel * kPanelKeys;
    StageQueries(args, row, begin, stage.q);
    stager.Fetch({BlockY() * args.per_head + begin, Least(kPanelKeys, args.nope - begin)},
                 BlockZ() * kColumns, stage.w);
    CopyAsyncCommit();
  };
  fetch(0);
  stager.Store(shared.stages[0].w);
  ScaleBlocks blocks(args);
  Sums sums = {};
  Sums total = {};  // with scales; otherwise not used
  for (int panel = 0; panel < panels; ++panel) {
    CopyAsyncWait<0>();
    SyncBlock();
    if (panel + 1 < panels) fetch(panel + 1);
    const HeadsShared::Stage& stage = shared.stages[panel % kStages];
    for (int step = 0; works && step < kPanelKeys / 16; ++step) {
      const int begin = panel * kPanelKeys + 16 * step, end = Least(16, args.nope - begin);
      if (end <= 0) break;
      if constexpr (kFp8) {
        for (int from = 0; from < end;) {
          const int to = Least(end, blocks.end - begin);
          Multiply(stage, step, from, to, sums);
          if (begin + to == blocks.end || begin + to == args.nope) {
            blocks.Promote(args, sums, total);
          }
          from = to;
        }
      } else {
        Multiply(stage, step, 0, 16, sums);
      }
    }
    if (panel + 1 < panels) stager.Store(shared.stages[(panel + 1) % kStages].w);
  }
  if (works) StoreSums(args, row, kFp8 ? total : sums);
}

template <bool kFp8>
cudaError_t Run(const MlaHeadsLaunch& args, cudaStream_t stream) {
  return Launch(MlaHeadsTensorKernel<kFp8>,
                {.grid = dim3(static_cast<unsigned>((args.rows + kRows - 1) / kRows),
                              static_cast<unsigned>(args.heads),
                              static_cast<unsigned>((args.kv_lora + kColumns - 1) / kColumns)),
                 .threads = kThreads,
                 .shared_bytes = sizeof(HeadsShared),
                 .stream = stream},
                args);
}

}  // namespace

bool CanMlaHeadsTensor(const MlaHeadsLaunch& args) {
  return args.q.bf16 && args.type != GemmType::kF32;
}

cudaError_t LaunchMlaHeadsTensor(const MlaHeadsLaunch& args, cudaStream_t stream) {
  return args.type == GemmType::kE4M3 ? Run<true>(args, stream) : Run<false>(args, stream);
}

}  // namespace baton::kernels::cuda
