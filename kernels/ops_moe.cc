// Checks of the mixture-of-experts ops (ops.h, third part).

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/check_args.h"
#include "kernels/op_table.h"
#include "kernels/ops.h"

namespace baton::kernels {
namespace {

constexpr int64_t kMaxTopK = 64;
constexpr int64_t kMaxExperts = 1 << 16;

void CheckGroups(ArgCheck& check, const MoeGateArgs& args, int64_t experts) {
  check.Range("experts", experts, 1, kMaxExperts);
  check.Range("n_group", args.n_group, 1, experts);
  check.Range("topk_group", args.topk_group, 1, args.n_group);
  if (!check.ok()) return;
  if (experts % args.n_group != 0) {
    return check.Fail(absl::StrCat("n_group is ", args.n_group, ", expected a divisor of the ",
                                   experts, " experts"));
  }
  const int64_t per_group = experts / args.n_group;
  check.Range("top_k", args.top_k, 1, std::min(kMaxTopK, args.topk_group * per_group));
  if (args.n_group > 1 && args.group_score == GroupScore::kSumOfTop2 && per_group < 2) {
    check.Fail("a group score of the two best experts needs groups of at least 2");
  }
}

void CheckReplicas(ArgCheck& check, const MoeGateArgs& args, int64_t rows, int64_t experts) {
  if (args.replicas.absent()) {
    check.Absent("replica_count (without replicas)", args.replica_count);
    check.Absent("row_hash (without replicas)", args.row_hash);
    return check.Absent("physical (without replicas)", args.physical);
  }
  check.Tensor("replicas", args.replicas, kI32Only, {experts, args.replicas.dim(1)});
  check.Tensor("replica_count", args.replica_count, kI32Only, {experts});
  check.Tensor("row_hash", args.row_hash, kI32Only, {rows});
  check.Tensor("physical", args.physical, kI32Only, {rows, args.top_k});
  check.Contents("replica_count", args.replica_count, 1, args.replicas.dim(1));
}

}  // namespace

absl::Status MoeGate(Device& device, const MoeGateArgs& args) {
  ArgCheck check("MoeGate", device);
  const int64_t rows = args.x.dim(0), hidden = args.x.dim(1), experts = args.gate.dim(0);
  check.Tensor("x", args.x, kFloats, {rows, hidden}, Layout::kRows);
  check.Tensor("gate", args.gate, kFloats, {experts, hidden}, Layout::kRows);
  if (!args.bias.absent()) check.Tensor("bias", args.bias, kF32Only, {experts});
  CheckGroups(check, args, experts);
  check.RangeF("scale", args.scale, 0, std::numeric_limits<float>::max());
  check.Tensor("experts", args.experts, kI32Only, {rows, args.top_k});
  check.Tensor("weights", args.weights, kF32Only, {rows, args.top_k});
  CheckReplicas(check, args, rows, experts);
  if (!check.ok() || rows == 0) return check.status();
  return device.ops().moe_gate(device, args);
}

absl::Status MoePermute(Device& device, const MoePermuteArgs& args) {
  ArgCheck check("MoePermute", device);
  const int64_t rows = args.experts.dim(0), top_k = args.experts.dim(1);
  check.Tensor("experts", args.experts, kI32Only, {rows, top_k});
  check.Range("first_expert", args.first_expert, 0, INT32_MAX);
  check.Range("offsets' size", args.offsets.dim(0), 1, kMaxExperts + 1);
  check.Tensor("offsets", args.offsets, kI32Only, {args.offsets.dim(0)});
  check.Range("pairs", rows * top_k, 0, INT32_MAX);
  check.Range("row_tokens' size", args.row_tokens.dim(0), 0, rows * top_k);
  check.Tensor("row_tokens", args.row_tokens, kI32Only, {args.row_tokens.dim(0)});
  check.Tensor("rows", args.rows, kI32Only, {rows, top_k});
  check.Contents("experts", args.experts, 0, INT32_MAX);
  if (!check.ok()) return check.status();
  return device.ops().moe_permute(device, args);  // offsets are written for an empty batch too
}

absl::Status GroupedLinear(Device& device, const GroupedLinearArgs& args) {
  ArgCheck check("GroupedLinear", device);
  const int64_t experts = static_cast<int64_t>(args.w.size());
  const int64_t rows = args.out.dim(0), n = args.out.dim(1), k = args.x.dim(1);
  const bool pair = args.epilogue == Epilogue::kSiluMul;
  if (experts > 0) check.RowsForWeight("x", args.x, args.x_scales, args.x.dim(0), args.w[0]);
  check.Tensor("out", args.out, kFloats, {rows, n}, Layout::kRows);
  if (args.x.dtype != DType::kF8E4M3) check.F32OrAct("out", args.out, args.x);
  check.Range("epilogue", static_cast<int64_t>(args.epilogue), 0, 1);
  check.Range("w2's size", static_cast<int64_t>(args.w2.size()), pair ? experts : 0,
              pair ? experts : 0);
  check.Tensor("offsets", args.offsets, kI32Only, {experts + 1});
  for (int64_t e = 0; e < experts && check.ok(); ++e) {
    check.WeightMatrix("w", args.w[e], n, k);
    check.SameKind("w", args.w[0], args.w[e]);
    if (!pair) continue;
    check.WeightMatrix("w2", args.w2[e], n, k);
    check.SameKind("w2", args.w[0], args.w2[e]);
  }
  check.Offsets("offsets", args.offsets, rows, /*exact=*/false);
  if (!args.row_index.absent()) {
    check.Tensor("row_index", args.row_index, kI32Only, {rows});
    if (check.readable()) {
      const int64_t used = args.offsets.as<const int32_t>()[experts];
      check.Contents("row_index", args.row_index.Slice(0, 0, used), 0, args.x.dim(0) - 1);
    }
  } else {
    check.Range("rows of x", args.x.dim(0), rows, INT64_MAX);
  }
  if (!check.ok() || rows == 0 || n == 0 || experts == 0) return check.status();
  return device.ops().grouped_linear(device, args);
}

absl::Status MoeCombine(Device& device, const MoeCombineArgs& args) {
  ArgCheck check("MoeCombine", device);
  const int64_t rows = args.out.dim(0), hidden = args.out.dim(1), top_k = args.rows.dim(1);
  check.Tensor("y", args.y, kFloats, {args.y.dim(0), hidden}, Layout::kRows);
  check.Range("top_k", top_k, 0, kMaxTopK);
  check.Tensor("rows", args.rows, kI32Only, {rows, top_k});
  check.Tensor("experts", args.experts, kI32Only, {rows, top_k});
  check.Tensor("weights", args.weights, kF32Only, {rows, top_k});
  if (!args.shared.absent())
    check.Tensor("shared", args.shared, kFloats, {rows, hidden}, Layout::kRows);
  check.Tensor("out", args.out, kF32Only, {rows, hidden}, Layout::kRows);
  check.Contents("rows", args.rows, -1, args.y.dim(0) - 1);
  if (!check.ok() || rows == 0) return check.status();
  return device.ops().moe_combine(device, args);
}

}  // namespace baton::kernels
