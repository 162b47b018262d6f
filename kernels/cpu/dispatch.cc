// Rows to the experts of other ranks, and outputs home.

#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/parallel.h"
#include "kernels/numeric.h"

namespace baton::kernels::cpu {
namespace {

// Values of all codes.
const std::array<float, 256>& CodeValues() {
  static const std::array<float, 256> values = [] {
    std::array<float, 256> all{};
    for (size_t code = 0; code < all.size(); ++code) {
      all[code] = F8E4M3ToF32(static_cast<uint8_t>(code));
    }
    return all;
  }();
  return values;
}

// A record's codes and scales as activations.
template <typename Out, typename Round>
void WidenRecord(const uint8_t* record, const RecordLayout& layout, Out* out, const Round& round) {
  const std::array<float, 256>& values = CodeValues();
  const float* const scales = reinterpret_cast<const float*>(record + layout.scales_at());
  for (int64_t begin = 0; begin < layout.hidden; begin += 128) {
    const float scale = scales[begin / 128];
    const int64_t end = std::min(begin + 128, layout.hidden);
    for (int64_t i = begin; i < end; ++i) out[i] = round(values[record[i]] * scale);
  }
}

int32_t BlockOf(const DispatchPlanArgs& args, int64_t rank) {
  return args.blocks.absent() ? static_cast<int32_t>(rank) : args.blocks.as<const int32_t>()[rank];
}

void WriteRecord(const DispatchPackArgs& args, int64_t row, int32_t rank, uint8_t* out) {
  const RecordLayout& layout = args.layout;
  const DispatchPlanArgs& plan = args.plan;
  std::memcpy(out, args.x.row<const uint8_t>(row), static_cast<size_t>(layout.row_bytes()));
  std::fill(out + layout.row_bytes(), out + layout.scales_at(), 0);
  if (layout.scales() > 0) {
    std::memcpy(out + layout.scales_at(), args.scales.row<const uint8_t>(row),
                static_cast<size_t>(4 * layout.scales()));
  }
  int32_t* const slots = reinterpret_cast<int32_t*>(out + layout.slots_at());
  const int32_t* const physical = plan.physical.row<const int32_t>(row);
  const int32_t* const home = plan.home_rows.row<const int32_t>(row);
  for (int c = 0; c < layout.choices; ++c) {
    const bool wanted = physical[c] / plan.slots_per_rank == rank && home[c] >= 0;
    slots[c] = wanted ? physical[c] % plan.slots_per_rank : plan.slots_per_rank;
  }
  std::fill(out + layout.slots_at() + 4 * layout.choices, out + layout.bytes(), 0);
}

}  // namespace

absl::Status MoeCount(Device&, const MoeCountArgs& args) {
  int32_t* const choices = args.choices.as<int32_t>();
  const int32_t* const experts = args.experts.as<const int32_t>();
  const int64_t* const slots = args.slots.absent() ? nullptr : args.slots.as<const int64_t>();
  const int64_t k = args.experts.dim(1);
  for (int64_t t = 0; t < args.experts.dim(0); ++t) {
    if (slots != nullptr && slots[t] < 0) continue;
    for (int64_t i = t * k; i < (t + 1) * k; ++i) ++choices[experts[i]];
  }
  return absl::OkStatus();
}

absl::Status CopyRows(Device& device, const CopyRowsArgs& args) {
  const int64_t bytes = args.out.dim(1) * static_cast<int64_t>(DTypeBytes(args.out.dtype));
  const int32_t* const index = args.index.absent() ? nullptr : args.index.as<const int32_t>();
  ParallelFor(device, args.out.dim(0), bytes / 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t from = index == nullptr ? t : index[t];
      if (from < 0) continue;
      std::memcpy(args.out.row<uint8_t>(t), args.x.row<const uint8_t>(from),
                  static_cast<size_t>(bytes));
    }
  });
  return absl::OkStatus();
}

absl::Status DispatchPlan(Device& device, const DispatchPlanArgs& args) {
  struct Places {
    int32_t rows = 0;
    int32_t pairs = 0;
    int64_t last_row = -1;  // that was met here
  };
  const int64_t rows = args.physical.dim(0), choices = args.physical.dim(1);
  const int64_t ranks = args.counts.dim(0);
  int32_t* const counts = args.counts.as<int32_t>();
  device.scratch().Reset();
  Places* const places = device.scratch().Get<Places>(ranks);
  const auto walk = [&](const auto& meet) {
    for (int64_t t = 0; t < rows; ++t) {
      const int32_t* const row = args.physical.row<const int32_t>(t);
      for (int64_t c = 0; c < choices; ++c) {
        Places& at = places[row[c] / args.slots_per_rank];
        meet(at, t * choices + c, at.last_row != t);
        at.last_row = t;
      }
    }
  };
  std::fill(places, places + ranks, Places{});
  walk([](Places& at, int64_t, bool is_first) {
    at.rows += is_first ? 1 : 0;
    ++at.pairs;
  });
  Places next;
  int32_t most = 0;
  for (int64_t r = 0; r < ranks; ++r) {
    counts[2 * r] = places[r].rows;
    counts[2 * r + 1] = places[r].pairs;
    most = std::max(most, places[r].pairs);
    if (args.row_capacity > 0) {
      const int32_t block = BlockOf(args, r);
      next.rows = block * args.row_capacity;
      next.pairs = block * args.pair_capacity;
    }
    places[r] = next;
    next.rows += counts[2 * r];
    next.pairs += counts[2 * r + 1];
  }
  if (!args.most_pairs.absent()) {
    int32_t& largest = *args.most_pairs.as<int32_t>();
    largest = std::max(largest, most);
  }
  int32_t* const records = args.records.as<int32_t>();
  int32_t* const home = args.home_rows.as<int32_t>();
  walk([&](Places& at, int64_t pair, bool is_first) {
    const int64_t block = BlockOf(args, &at - places);
    const bool fits = args.row_capacity == 0 || at.pairs < (block + 1) * args.pair_capacity;
    records[pair] = is_first && block >= 0 ? at.rows++ : -1;
    home[pair] = fits && block >= 0 ? at.pairs : -1;
    ++at.pairs;
  });
  return absl::OkStatus();
}

absl::Status DispatchPack(Device& device, const DispatchPackArgs& args) {
  const DispatchPlanArgs& plan = args.plan;
  const int64_t choices = args.layout.choices;
  ParallelFor(device, plan.physical.dim(0), args.layout.bytes() * choices / 8,
              [&](int64_t begin, int64_t end, int) {
                for (int64_t t = begin; t < end; ++t) {
                  const int32_t* const records = plan.records.row<const int32_t>(t);
                  const int32_t* const physical = plan.physical.row<const int32_t>(t);
                  for (int64_t c = 0; c < choices; ++c) {
                    if (records[c] < 0) continue;
                    WriteRecord(args, t, physical[c] / plan.slots_per_rank,
                                args.out.row<uint8_t>(records[c]));
                  }
                }
              });
  if (plan.row_capacity == 0) return absl::OkStatus();
  for (int64_t r = 0; r < plan.counts.dim(0); ++r) {
    const int64_t block = BlockOf(plan, r);
    if (block < 0) continue;
    for (int64_t i = plan.counts.as<const int32_t>()[2 * r]; i < plan.row_capacity; ++i) {
      uint8_t* const record = args.out.row<uint8_t>(block * plan.row_capacity + i);
      int32_t* const slots = reinterpret_cast<int32_t*>(record + args.layout.slots_at());
      std::fill(slots, slots + choices, plan.slots_per_rank);
    }
  }
  return absl::OkStatus();
}

absl::Status DispatchUnpack(Device& device, const DispatchUnpackArgs& args) {
  const RecordLayout& layout = args.layout;
  const int32_t elsewhere = args.slots_per_rank;
  ParallelFor(device, args.slots.dim(0), args.x.absent() ? layout.choices : layout.hidden,
              [&](int64_t begin, int64_t end, int) {
                for (int64_t t = begin; t < end; ++t) {
                  const uint8_t* const record = args.records.row<const uint8_t>(t);
                  const int32_t* const wanted =
                      reinterpret_cast<const int32_t*>(record + layout.slots_at());
                  int32_t* const slots = args.slots.row<int32_t>(t);
                  bool wants = false;
                  for (int c = 0; c < layout.choices; ++c) {
                    const bool here = wanted[c] >= 0 && wanted[c] < elsewhere;
                    slots[c] = here ? wanted[c] : elsewhere;
                    wants = wants || here;
                  }
                  if (args.x.absent() || !wants) continue;
                  if (args.x.dtype == DType::kBF16) {
                    WidenRecord(record, layout, args.x.row<uint16_t>(t), F32ToBf16);
                  } else {
                    WidenRecord(record, layout, args.x.row<float>(t),
                                [](float value) { return value; });
                  }
                }
              });
  return absl::OkStatus();
}

absl::Status ReturnPlan(Device&, const ReturnPlanArgs& args) {
  const int64_t blocks = args.row_capacity > 0 ? args.pair_rows.dim(0) / args.row_capacity : 1;
  const int64_t entries = args.pair_rows.elements() / blocks;
  const int64_t places = args.index.elements() / blocks;
  const int32_t* pair_rows = args.pair_rows.as<const int32_t>();
  int32_t* index = args.index.as<int32_t>();
  for (int64_t b = 0; b < blocks; ++b, pair_rows += entries, index += places) {
    int64_t next = 0;
    for (int64_t i = 0; i < entries; ++i) {
      if (pair_rows[i] >= 0 && next < places) index[next++] = pair_rows[i];
    }
    std::fill(index + next, index + places, -1);
  }
  return absl::OkStatus();
}

}  // namespace baton::kernels::cpu
