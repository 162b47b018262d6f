// Each place in a message is counted anew, from the definitions.

#include <algorithm>
#include <cstring>

#include "kernels/numeric.h"
#include "kernels/reference/reference_ops.h"
#include "kernels/reference/values.h"

namespace baton::kernels::reference {
namespace {

// Rank that choice c of row t is on.
int64_t RankOf(const DispatchPlanArgs& args, int64_t t, int64_t c) {
  return args.physical.row<const int32_t>(t)[c] / args.slots_per_rank;
}

int64_t BlockOf(const DispatchPlanArgs& args, int64_t rank) {
  return args.blocks.absent() ? rank : args.blocks.as<const int32_t>()[rank];
}

bool IsFirstOfRank(const DispatchPlanArgs& args, int64_t t, int64_t c) {
  for (int64_t before = 0; before < c; ++before) {
    if (RankOf(args, t, before) == RankOf(args, t, c)) return false;
  }
  return true;
}

// Rows and pairs of ranks [begin, end) among the first `pairs` pairs.
struct Places {
  int64_t rows = 0;
  int64_t pairs = 0;
};
Places CountPlaces(const DispatchPlanArgs& args, int64_t begin, int64_t end, int64_t pairs) {
  const int64_t choices = args.physical.dim(1);
  Places places;
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const int64_t t = pair / choices, c = pair % choices, rank = RankOf(args, t, c);
    if (rank < begin || rank >= end) continue;
    ++places.pairs;
    if (IsFirstOfRank(args, t, c)) ++places.rows;
  }
  return places;
}

}  // namespace

absl::Status MoeCount(Device&, const MoeCountArgs& args) {
  const int64_t k = args.experts.dim(1);
  for (int64_t i = 0; i < args.experts.elements(); ++i) {
    if (!args.slots.absent() && args.slots.as<const int64_t>()[i / k] < 0) continue;
    ++args.choices.as<int32_t>()[args.experts.as<const int32_t>()[i]];
  }
  return absl::OkStatus();
}

absl::Status CopyRows(Device&, const CopyRowsArgs& args) {
  const size_t bytes = static_cast<size_t>(args.out.dim(1)) * DTypeBytes(args.out.dtype);
  for (int64_t t = 0; t < args.out.dim(0); ++t) {
    const int64_t from = args.index.absent() ? t : args.index.as<const int32_t>()[t];
    if (from >= 0) std::memcpy(args.out.row<uint8_t>(t), args.x.row<const uint8_t>(from), bytes);
  }
  return absl::OkStatus();
}

absl::Status DispatchPlan(Device&, const DispatchPlanArgs& args) {
  const int64_t choices = args.physical.dim(1), pairs = args.physical.elements();
  const bool packed = args.row_capacity == 0;
  for (int64_t r = 0; r < args.counts.dim(0); ++r) {
    const Places all = CountPlaces(args, r, r + 1, pairs);
    args.counts.as<int32_t>()[2 * r] = static_cast<int32_t>(all.rows);
    args.counts.as<int32_t>()[2 * r + 1] = static_cast<int32_t>(all.pairs);
    if (args.most_pairs.absent()) continue;
    int32_t& most = *args.most_pairs.as<int32_t>();
    most = std::max(most, static_cast<int32_t>(all.pairs));
  }
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const int64_t t = pair / choices, c = pair % choices, rank = RankOf(args, t, c);
    const int64_t number = BlockOf(args, rank);
    const Places block = packed ? CountPlaces(args, 0, rank, pairs)
                                : Places{number * args.row_capacity, number * args.pair_capacity};
    const Places before = CountPlaces(args, rank, rank + 1, pair);
    const bool fits = number >= 0 && (packed || before.pairs < args.pair_capacity);
    args.records.as<int32_t>()[pair] = number >= 0 && IsFirstOfRank(args, t, c)
                                           ? static_cast<int32_t>(block.rows + before.rows)
                                           : -1;
    args.home_rows.as<int32_t>()[pair] =
        fits ? static_cast<int32_t>(block.pairs + before.pairs) : -1;
  }
  return absl::OkStatus();
}

absl::Status DispatchPack(Device&, const DispatchPackArgs& args) {
  const RecordLayout& layout = args.layout;
  const DispatchPlanArgs& plan = args.plan;
  const auto slots_of = [&](int64_t record) {
    return reinterpret_cast<int32_t*>(args.out.row<uint8_t>(record) + layout.slots_at());
  };
  for (int64_t pair = 0; pair < plan.physical.elements(); ++pair) {
    const int64_t t = pair / layout.choices;
    const int32_t record = plan.records.as<const int32_t>()[pair];
    if (record < 0) continue;
    uint8_t* const out = args.out.row<uint8_t>(record);
    std::fill(out, out + layout.bytes(), 0);
    std::memcpy(out, args.x.row<const uint8_t>(t), static_cast<size_t>(layout.row_bytes()));
    if (layout.scales() > 0) {
      std::memcpy(out + layout.scales_at(), args.scales.row<const uint8_t>(t),
                  static_cast<size_t>(4 * layout.scales()));
    }
    for (int64_t c = 0; c < layout.choices; ++c) {
      const bool wanted = RankOf(plan, t, c) == RankOf(plan, t, pair % layout.choices) &&
                          plan.home_rows.row<const int32_t>(t)[c] >= 0;
      slots_of(record)[c] = wanted ? plan.physical.row<const int32_t>(t)[c] % plan.slots_per_rank
                                   : plan.slots_per_rank;
    }
  }
  for (int64_t rank = 0; rank < plan.counts.dim(0) && plan.row_capacity > 0; ++rank) {
    if (BlockOf(plan, rank) < 0) continue;
    for (int64_t i = plan.counts.as<const int32_t>()[2 * rank]; i < plan.row_capacity; ++i) {
      int32_t* const slots = slots_of(BlockOf(plan, rank) * plan.row_capacity + i);
      std::fill(slots, slots + layout.choices, plan.slots_per_rank);
    }
  }
  return absl::OkStatus();
}

absl::Status DispatchUnpack(Device&, const DispatchUnpackArgs& args) {
  const RecordLayout& layout = args.layout;
  for (int64_t t = 0; t < args.slots.dim(0); ++t) {
    const uint8_t* const record = args.records.row<const uint8_t>(t);
    int32_t* const slots = args.slots.row<int32_t>(t);
    std::memcpy(slots, record + layout.slots_at(),
                sizeof(int32_t) * static_cast<size_t>(layout.choices));
    bool wants = false;
    for (int c = 0; c < layout.choices; ++c) {
      if (slots[c] < 0 || slots[c] > args.slots_per_rank) slots[c] = args.slots_per_rank;
      wants = wants || slots[c] < args.slots_per_rank;
    }
    if (args.x.absent() || !wants) continue;
    for (int64_t i = 0; i < layout.hidden; ++i) {
      float scale = 0;
      std::memcpy(&scale, record + layout.scales_at() + 4 * (i / 128), sizeof scale);
      Put(args.x, t, i, double{F8E4M3ToF32(record[i])} * double{scale});
    }
  }
  return absl::OkStatus();
}

absl::Status ReturnPlan(Device&, const ReturnPlanArgs& args) {
  const int64_t blocks = args.row_capacity > 0 ? args.pair_rows.dim(0) / args.row_capacity : 1;
  const int64_t entries = args.pair_rows.elements() / blocks;
  const int64_t places = args.index.elements() / blocks;
  std::fill(args.index.as<int32_t>(), args.index.as<int32_t>() + args.index.elements(), -1);
  for (int64_t b = 0; b < blocks; ++b) {
    int64_t next = b * places;
    for (int64_t i = b * entries; i < (b + 1) * entries; ++i) {
      const int32_t row = args.pair_rows.as<const int32_t>()[i];
      if (row >= 0 && next < (b + 1) * places) args.index.as<int32_t>()[next++] = row;
    }
  }
  return absl::OkStatus();
}

}  // namespace baton::kernels::reference
