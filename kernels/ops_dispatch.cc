// Checks of the ops between ranks (ops.h, "Rows between ranks").

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "kernels/check_args.h"
#include "kernels/op_table.h"
#include "kernels/ops.h"

namespace baton::kernels {
namespace {

constexpr int64_t kMaxChoices = 64;
constexpr int64_t kMaxRanks = 1024;
constexpr int64_t kMaxSlots = 1 << 16;
constexpr uint32_t kAnyType = kWeights | Bit(DType::kI32) | Bit(DType::kI64) | Bit(DType::kU8);

void CheckCapacities(ArgCheck& check, int row_capacity, int pair_capacity) {
  check.Range("row_capacity", row_capacity, 0, INT32_MAX);
  check.Range("pair_capacity", pair_capacity, row_capacity > 0 ? 1 : 0,
              row_capacity > 0 ? INT32_MAX : 0);
}

void CheckPlan(ArgCheck& check, const DispatchPlanArgs& args) {
  const int64_t rows = args.physical.dim(0), choices = args.physical.dim(1);
  const int64_t ranks = args.counts.dim(0);
  check.Tensor("physical", args.physical, kI32Only, {rows, choices});
  check.Range("choices", choices, 1, kMaxChoices);
  check.Range("ranks", ranks, 1, kMaxRanks);
  check.Range("slots_per_rank", args.slots_per_rank, 1, kMaxSlots);
  CheckCapacities(check, args.row_capacity, args.pair_capacity);
  if (args.row_capacity > 0) check.Range("rows", rows, 0, args.row_capacity);
  check.Range("records", ranks * int64_t{args.row_capacity}, 0, INT32_MAX);
  check.Range("pairs", rows * choices, 0, INT32_MAX);
  check.Range("pairs", ranks * int64_t{args.pair_capacity}, 0, INT32_MAX);
  check.Tensor("counts", args.counts, kI32Only, {ranks, 2});
  check.Tensor("records", args.records, kI32Only, {rows, choices});
  check.Tensor("home_rows", args.home_rows, kI32Only, {rows, choices});
  if (args.row_capacity == 0) {
    check.Absent("blocks of a packed message", args.blocks);
  } else if (!args.blocks.absent()) {
    check.Tensor("blocks", args.blocks, kI32Only, {ranks});
    check.Contents("blocks", args.blocks, -1, ranks - 1);
  }
  if (!args.most_pairs.absent()) check.Tensor("most_pairs", args.most_pairs, kI32Only, {1});
  check.Contents("physical", args.physical, 0, ranks * args.slots_per_rank - 1);
}

void CheckLayout(ArgCheck& check, const RecordLayout& layout) {
  check.Range("hidden", layout.hidden, 1, 1 << 20);
  check.Range("choices", layout.choices, 1, kMaxChoices);
  if (check.ok() && (kWeights & Bit(layout.dtype)) == 0) {
    check.Fail(absl::StrCat("a record's values are ", DTypeName(layout.dtype),
                            ", expected F32, BF16 or F8E4M3"));
  }
}

void CheckMessage(ArgCheck& check, const char* name, const TensorView& message,
                  const RecordLayout& layout) {
  check.Tensor(name, message, Bit(DType::kU8), {message.dim(0), layout.bytes()});
  if (check.ok() && reinterpret_cast<uintptr_t>(message.data) % 16 != 0) {
    check.Fail(absl::StrCat(name, " is at an address that is not a multiple of 16 bytes"));
  }
}

}  // namespace

absl::Status MoeCount(Device& device, const MoeCountArgs& args) {
  ArgCheck check("MoeCount", device);
  check.Tensor("experts", args.experts, kI32Only, {args.experts.dim(0), args.experts.dim(1)});
  check.Tensor("choices", args.choices, kI32Only, {args.choices.dim(0)});
  check.Range("pairs", args.experts.elements(), 0, INT32_MAX);
  check.Contents("experts", args.experts, 0, args.choices.dim(0) - 1);
  if (!args.slots.absent()) {
    check.Tensor("slots", args.slots, Bit(DType::kI64), {args.experts.dim(0)});
  }
  if (!check.ok() || args.experts.elements() == 0) return check.status();
  return device.ops().moe_count(device, args);
}

absl::Status CopyRows(Device& device, const CopyRowsArgs& args) {
  ArgCheck check("CopyRows", device);
  const int64_t rows = args.out.dim(0), width = args.out.dim(1);
  check.Tensor("x", args.x, kAnyType, {args.x.dim(0), width}, Layout::kRows);
  check.Tensor("out", args.out, kAnyType, {rows, width}, Layout::kRows);
  check.SameDType("x", args.x, "out", args.out);
  check.Range("rows", rows, 0, INT32_MAX);
  if (args.index.absent()) {
    check.Range("rows of x", args.x.dim(0), rows, rows);
  } else {
    check.Tensor("index", args.index, kI32Only, {rows});
    check.Contents("index", args.index, INT32_MIN, args.x.dim(0) - 1);
  }
  if (!check.ok() || rows == 0 || width == 0) return check.status();
  return device.ops().copy_rows(device, args);
}

absl::Status DispatchPlan(Device& device, const DispatchPlanArgs& args) {
  ArgCheck check("DispatchPlan", device);
  CheckPlan(check, args);
  if (!check.ok()) return check.status();
  return device.ops().dispatch_plan(device, args);  // counts are written for an empty batch too
}

absl::Status DispatchPack(Device& device, const DispatchPackArgs& args) {
  ArgCheck check("DispatchPack", device);
  CheckLayout(check, args.layout);
  CheckPlan(check, args.plan);
  const RecordLayout& layout = args.layout;
  const int64_t rows = args.plan.physical.dim(0), message_rows = args.out.dim(0);
  check.Range("choices", layout.choices, args.plan.physical.dim(1), args.plan.physical.dim(1));
  check.Tensor("x", args.x, Bit(layout.dtype), {rows, layout.hidden}, Layout::kRows);
  if (layout.scales() > 0) {
    check.Tensor("scales", args.scales, kF32Only, {rows, layout.scales()}, Layout::kRows);
  } else {
    check.Absent("scales of values that are not F8E4M3", args.scales);
  }
  CheckMessage(check, "out", args.out, layout);
  if (args.plan.row_capacity > 0) {
    const int64_t all = args.plan.counts.dim(0) * args.plan.row_capacity;
    const bool may_lack = !args.plan.blocks.absent();
    check.Range("records of out", message_rows, may_lack ? 0 : all, all);
  }
  check.Contents("records", args.plan.records, -1, message_rows - 1);
  if (!check.ok()) return check.status();
  return device.ops().dispatch_pack(device, args);  // marks unused records without rows too
}

absl::Status DispatchUnpack(Device& device, const DispatchUnpackArgs& args) {
  ArgCheck check("DispatchUnpack", device);
  CheckLayout(check, args.layout);
  CheckMessage(check, "records", args.records, args.layout);
  const int64_t rows = args.records.dim(0);
  check.Range("slots_per_rank", args.slots_per_rank, 1, kMaxSlots);
  check.Range("rows", rows, 0, INT32_MAX);
  if (args.layout.dtype == DType::kF8E4M3) {
    if (!args.x.absent()) {
      check.Tensor("x", args.x, kFloats, {rows, args.layout.hidden}, Layout::kRows);
    }
  } else {
    check.Absent("x of values that are not F8E4M3", args.x);
  }
  check.Tensor("slots", args.slots, kI32Only, {rows, args.layout.choices});
  if (!check.ok() || rows == 0) return check.status();
  return device.ops().dispatch_unpack(device, args);
}

absl::Status ReturnPlan(Device& device, const ReturnPlanArgs& args) {
  ArgCheck check("ReturnPlan", device);
  const int64_t rows = args.pair_rows.dim(0);
  check.Tensor("pair_rows", args.pair_rows, kI32Only, {rows, args.pair_rows.dim(1)});
  CheckCapacities(check, args.row_capacity, args.pair_capacity);
  check.Tensor("index", args.index, kI32Only, {args.index.dim(0)});
  check.Range("pairs", args.pair_rows.elements(), 0, INT32_MAX);
  if (check.ok() && args.row_capacity > 0) {
    const int64_t blocks = rows / args.row_capacity, places = blocks * args.pair_capacity;
    check.Range("rows", rows, blocks * args.row_capacity, blocks * args.row_capacity);
    check.Range("index's size", args.index.dim(0), places, places);
  }
  if (!check.ok() || args.index.dim(0) == 0) return check.status();
  return device.ops().return_plan(device, args);
}

}  // namespace baton::kernels
