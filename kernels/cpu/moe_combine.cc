#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd_base.h"

namespace baton::kernels::cpu {
namespace {

constexpr int kMaxChoices = 64;  // ops_moe.cc refuses more

// The parts of one output row, in the order they are added.
struct CombineRow {
  int count = 0;
  const void* y[kMaxChoices];
  float weights[kMaxChoices];
  const void* shared = nullptr;  // nullable
  bool y_bf16 = false, shared_bf16 = false, accumulate = false;
  float* out = nullptr;
};

}  // namespace
}  // namespace baton::kernels::cpu

#define BATON_ISA_FILE "kernels/cpu/moe_combine_isa.h"
#include "kernels/cpu/foreach_isa.h"

namespace baton::kernels::cpu {
namespace {

void Combine(IsaLevel isa, const CombineRow& row, int64_t n) {
  BATON_ISA_CALL(isa, Combine(row, n));
}

CombineRow MakeRow(const MoeCombineArgs& args, int64_t t) {
  CombineRow row;
  const int32_t* rows = args.rows.row<const int32_t>(t);
  const int32_t* experts = args.experts.row<const int32_t>(t);
  int order[kMaxChoices];
  for (int c = 0; c < args.rows.dim(1); ++c) {
    if (rows[c] < 0) continue;
    int at = row.count++;
    for (; at > 0 && experts[order[at - 1]] > experts[c]; --at) order[at] = order[at - 1];
    order[at] = c;
  }
  for (int i = 0; i < row.count; ++i) {
    row.y[i] = args.y.row<const uint8_t>(rows[order[i]]);
    row.weights[i] = args.weights.row<const float>(t)[order[i]];
  }
  row.y_bf16 = args.y.dtype == DType::kBF16;
  if (!args.shared.absent()) {
    row.shared = args.shared.row<const uint8_t>(t);
    row.shared_bf16 = args.shared.dtype == DType::kBF16;
  }
  row.accumulate = args.accumulate;
  row.out = args.out.row<float>(t);
  return row;
}

}  // namespace

absl::Status MoeCombine(Device& device, const MoeCombineArgs& args) {
  const int64_t hidden = args.out.dim(1);
  ParallelFor(device, args.out.dim(0), hidden * (args.rows.dim(1) + 1),
              [&](int64_t begin, int64_t end, int) {
                for (int64_t t = begin; t < end; ++t) {
                  Combine(device.isa(), MakeRow(args, t), hidden);
                }
              });
  return absl::OkStatus();
}

}  // namespace baton::kernels::cpu
