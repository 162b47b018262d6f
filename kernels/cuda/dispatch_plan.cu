// Places in messages, in order and without atomics: a warp walks one stretch twice, first counting,
// then placing by the sums that the warp's lanes give each other.

#include "kernels/cuda/device.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/elements.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarpSize;

BATON_DEVICE int CountBits(uint32_t bits) {
  bits = bits - ((bits >> 1) & 0x55555555u);
  bits = (bits & 0x33333333u) + ((bits >> 2) & 0x33333333u);
  return static_cast<int>((((bits + (bits >> 4)) & 0x0F0F0F0Fu) * 0x01010101u) >> 24);
}

// Where a warp's stretch of `count` begins; all warps' stretches cover all.
BATON_DEVICE int64_t StretchBegin(int64_t count, int warp) {
  const int64_t stretch = (count / kWarps + kWarpSize) / kWarpSize * kWarpSize;
  return warp * stretch < count ? warp * stretch : count;
}

// A rank's slots are [first, first + slots_per_rank).
BATON_DEVICE bool IsOf(int slot, int first, const DispatchPlanLaunch& args) {
  return slot >= first && slot < first + args.slots_per_rank;
}

BATON_DEVICE const int32_t* SlotsOf(const DispatchPlanLaunch& args, int row) {
  return args.physical + int64_t{row} * args.choices;
}

// Rows and pairs, of one rank or of those below it.
struct Places {
  int rows;
  int pairs;
};

// What `row` adds to the rank whose slots begin at `first`.
BATON_DEVICE Places OwnPlaces(const DispatchPlanLaunch& args, int row, int first) {
  const int32_t* const slots = SlotsOf(args, row);
  int pairs = 0;
#pragma unroll 1
  for (int choice = 0; choice < args.choices; ++choice) {
    pairs += IsOf(slots[choice], first, args) ? 1 : 0;
  }
  return {pairs > 0 ? 1 : 0, pairs};
}

// What `row` adds to the ranks below it: to each of them one row.
BATON_DEVICE Places PlacesBelow(const DispatchPlanLaunch& args, int row, int first) {
  const int32_t* const slots = SlotsOf(args, row);
  Places below = {0, 0};
#pragma unroll 1
  for (int choice = 0; choice < args.choices; ++choice) {
    if (slots[choice] >= first) continue;
    const int lower = slots[choice] / args.slots_per_rank * args.slots_per_rank;
    bool is_first = true;
#pragma unroll 1
    for (int other = 0; other < choice; ++other) {
      is_first = is_first && !IsOf(slots[other], lower, args);
    }
    below.rows += is_first ? 1 : 0;
    ++below.pairs;
  }
  return below;
}

struct PlanCounts {
  Places own[kWarps];  // of a warp's stretch
  Places below[kWarps];
};

BATON_DEVICE void Place(const DispatchPlanLaunch& args, int row, int first, int record, int pair,
                        int pair_end) {
  bool is_first = true;
#pragma unroll 1
  for (int choice = 0; choice < args.choices; ++choice) {
    const int64_t at = int64_t{row} * args.choices + choice;
    if (!IsOf(args.physical[at], first, args)) continue;
    args.records[at] = is_first && pair_end >= 0 ? record : -1;
    args.home_rows[at] = pair < pair_end ? pair : -1;
    is_first = false;
    ++pair;
  }
}

BATON_KERNEL(kThreads) DispatchPlanKernel(const DispatchPlanLaunch args) {
  auto& counts = SharedMemory<PlanCounts>();
  const int rank = BlockX();
  const int first_slot = rank * args.slots_per_rank;
  const bool packed = args.row_capacity == 0;
  const int begin = static_cast<int>(StretchBegin(args.rows, Warp()));
  const int end = static_cast<int>(StretchBegin(args.rows, Warp() + 1));
  Places own = {0, 0}, below = {0, 0};
  for (int row = begin + Lane(); row < end; row += kWarpSize) {
    const Places mine = OwnPlaces(args, row, first_slot);
    own.rows += mine.rows;
    own.pairs += mine.pairs;
    if (!packed) continue;
    const Places lower = PlacesBelow(args, row, first_slot);
    below.rows += lower.rows;
    below.pairs += lower.pairs;
  }
  own = {WarpSum(own.rows), WarpSum(own.pairs)};
  below = {WarpSum(below.rows), WarpSum(below.pairs)};
  if (Lane() == 0) {
    counts.own[Warp()] = own;
    counts.below[Warp()] = below;
  }
  SyncBlock();
  const int block = args.blocks == nullptr ? rank : args.blocks[rank];
  Places all = {0, 0};
  Places next = {block * args.row_capacity, block * args.pair_capacity};
  for (int warp = 0; warp < kWarps; ++warp) {
    all.rows += counts.own[warp].rows;
    all.pairs += counts.own[warp].pairs;
    next.rows += counts.below[warp].rows + (warp < Warp() ? counts.own[warp].rows : 0);
    next.pairs += counts.below[warp].pairs + (warp < Warp() ? counts.own[warp].pairs : 0);
  }
  if (ThreadIndex() == 0) {
    args.counts[2 * rank] = all.rows;
    args.counts[2 * rank + 1] = all.pairs;
    if (args.most_pairs != nullptr) AtomicMax(args.most_pairs, all.pairs);
  }
  const int pair_end = packed      ? INT32_MAX
                       : block < 0 ? INT32_MIN
                                   : (block + 1) * args.pair_capacity;
  for (int first = begin; first < end; first += kWarpSize) {
    const int row = first + Lane();
    const Places mine = row < end ? OwnPlaces(args, row, first_slot) : Places{0, 0};
    const uint32_t rows = Ballot(mine.rows > 0);
    int pairs = mine.pairs;  // of this lane and those below it
#pragma unroll
    for (int delta = 1; delta < kWarpSize; delta *= 2) {
      const int lower = ShuffleUp(pairs, delta);
      pairs += Lane() >= delta ? lower : 0;
    }
    if (mine.rows > 0) {
      const int record = next.rows + CountBits(rows & ((1u << Lane()) - 1u));
      Place(args, row, first_slot, record, next.pairs + pairs - mine.pairs, pair_end);
    }
    next.rows += CountBits(rows);
    next.pairs += ShuffleFrom(pairs, kWarpSize - 1);
  }
}

struct ReturnCounts {
  int32_t pairs[kWarps];
};

BATON_KERNEL(kThreads) ReturnPlanKernel(const ReturnPlanLaunch args) {
  auto& counts = SharedMemory<ReturnCounts>();
  const int32_t* const entries = args.pair_rows + BlockX() * args.block_entries;
  int32_t* const index = args.index + BlockX() * args.block_places;
  const int64_t begin = StretchBegin(args.block_entries, Warp());
  const int64_t end = StretchBegin(args.block_entries, Warp() + 1);
  int pairs = 0;
  for (int64_t i = begin + Lane(); i < end; i += kWarpSize) pairs += entries[i] >= 0 ? 1 : 0;
  pairs = WarpSum(pairs);
  if (Lane() == 0) counts.pairs[Warp()] = pairs;
  SyncBlock();
  int all = 0, next = 0;
  for (int warp = 0; warp < kWarps; ++warp) {
    all += counts.pairs[warp];
    next += warp < Warp() ? counts.pairs[warp] : 0;
  }
  for (int64_t first = begin; first < end; first += kWarpSize) {
    const int64_t i = first + Lane();
    const int32_t row = i < end ? entries[i] : -1;
    const uint32_t here = Ballot(row >= 0);
    const int place = next + CountBits(here & ((1u << Lane()) - 1u));
    if (row >= 0 && place < args.block_places) index[place] = row;
    next += CountBits(here);
  }
  for (int64_t i = all + ThreadIndex(); i < args.block_places; i += kThreads) index[i] = -1;
}

constexpr int kCountThreads = 256;

BATON_KERNEL(kCountThreads) MoeCountKernel(const MoeCountLaunch args) {
  const int pair = BlockX() * kCountThreads + ThreadIndex();
  if (pair >= args.pairs) return;
  if (args.slots != nullptr && args.slots[pair / args.row_pairs] < 0) return;
  AtomicAdd(args.choices + args.experts[pair], 1);
}

}  // namespace

cudaError_t LaunchDispatchPlan(const DispatchPlanLaunch& args, cudaStream_t stream) {
  return Launch(DispatchPlanKernel,
                {.grid = dim3(static_cast<unsigned>(args.ranks)),
                 .threads = kThreads,
                 .shared_bytes = sizeof(PlanCounts),
                 .stream = stream},
                args);
}

cudaError_t LaunchReturnPlan(const ReturnPlanLaunch& args, cudaStream_t stream) {
  return Launch(ReturnPlanKernel,
                {.grid = dim3(static_cast<unsigned>(args.blocks)),
                 .threads = kThreads,
                 .shared_bytes = sizeof(ReturnCounts),
                 .stream = stream},
                args);
}

cudaError_t LaunchMoeCount(const MoeCountLaunch& args, cudaStream_t stream) {
  const int blocks = (args.pairs + kCountThreads - 1) / kCountThreads;
  return Launch(
      MoeCountKernel,
      {.grid = dim3(static_cast<unsigned>(blocks)), .threads = kCountThreads, .stream = stream},
      args);
}

}  // namespace baton::kernels::cuda
