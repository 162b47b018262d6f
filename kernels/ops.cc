#include "kernels/ops.h"

#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/check_args.h"
#include "kernels/draw_weight.h"
#include "kernels/op_table.h"

namespace baton::kernels {
namespace {

constexpr double kFloatMax = std::numeric_limits<float>::max();

absl::Status CheckSampleParams(ArgCheck& check, const SampleParams& params, int64_t vocabulary) {
  check.RangeF("temperature", params.temperature, 0, kFloatMax);
  check.Range("top_k", params.top_k, 0, INT32_MAX);
  check.RangeF("top_p", params.top_p, std::numeric_limits<float>::denorm_min(), 1);
  check.RangeF("min_p", params.min_p, 0, 1);
  check.RangeF("repetition_penalty", params.repetition_penalty,
               std::numeric_limits<float>::denorm_min(), kFloatMax);
  check.RangeF("presence_penalty", params.presence_penalty, -kFloatMax, kFloatMax);
  check.RangeF("frequency_penalty", params.frequency_penalty, -kFloatMax, kFloatMax);
  check.Range("top_logprobs", params.top_logprobs, 0, 20);
  for (const TokenCount& seen : params.seen) {
    check.Range("seen.token", seen.token, 0, vocabulary - 1);
    check.Range("seen.generated", seen.generated, 0, INT32_MAX);
  }
  return check.status();
}

}  // namespace

Weight Weight::Rows(int64_t begin, int64_t end) const {
  Weight part = *this;
  part.w = w.Slice(0, begin, end);
  if (scales.absent()) return part;
  const int64_t first = first_row + begin, last = first_row + end;
  part.scales = scales.Slice(0, first / block_n, (last + block_n - 1) / block_n);
  part.first_row = static_cast<int>(first % block_n);
  return part;
}

absl::Status Embed(Device& device, const EmbedArgs& args) {
  ArgCheck check("Embed", device);
  const int64_t rows = args.ids.dim(0), hidden = args.table.dim(1);
  check.Tensor("ids", args.ids, kI32Only, {rows});
  check.Tensor("table", args.table, kFloats, {args.table.dim(0), hidden}, Layout::kRows);
  check.Tensor("out", args.out, kF32Only, {rows, hidden}, Layout::kRows);
  check.Contents("ids", args.ids, 0, args.table.dim(0) - 1);
  if (!check.ok() || rows == 0) return check.status();
  return device.ops().embed(device, args);
}

absl::Status RmsNorm(Device& device, const RmsNormArgs& args) {
  ArgCheck check("RmsNorm", device);
  const int64_t rows = args.x.dim(0), hidden = args.weight.dim(0);
  check.Tensor("weight", args.weight, kFloats, {hidden});
  check.Tensor("x", args.x, kFloats, {rows, hidden}, Layout::kRows);
  if (!args.add.absent()) check.Tensor("add", args.add, kFloats, {rows, hidden}, Layout::kRows);
  check.Tensor("out", args.out, kFloats, {rows, hidden}, Layout::kRows);
  check.Range("hidden", hidden, 1, INT32_MAX);
  check.RangeF("eps", args.eps, 0, 1);
  if (!check.ok() || rows == 0) return check.status();
  return device.ops().rms_norm(device, args);
}

absl::Status Linear(Device& device, const LinearArgs& args) {
  ArgCheck check("Linear", device);
  const int64_t rows = args.x.dim(0), n = args.w.w.dim(0), k = args.w.w.dim(1);
  check.WeightMatrix("w", args.w, n, k);
  check.RowsForWeight("x", args.x, args.x_scales, rows, args.w);
  check.Tensor("out", args.out, kFloats, {rows, n}, Layout::kRows);
  if (args.x.dtype != DType::kF8E4M3) check.F32OrAct("out", args.out, args.x);
  if (args.epilogue == Epilogue::kSiluMul) {
    check.WeightMatrix("w2", args.w2, n, k);
    check.SameKind("w2", args.w, args.w2);
  } else {
    check.Absent("w2 (without kSiluMul)", args.w2.w);
  }
  if (args.epilogue == Epilogue::kAdd)
    check.Tensor("out", args.out, kF32Only, {rows, n}, Layout::kRows);
  if (!check.ok() || rows == 0 || n == 0) return check.status();
  return device.ops().linear(device, args);
}

absl::Status QuantizeFp8(Device& device, const QuantizeFp8Args& args) {
  ArgCheck check("QuantizeFp8", device);
  const int64_t rows = args.x.dim(0), k = args.x.dim(1);
  check.Tensor("x", args.x, kFloats, {rows, k}, Layout::kRows);
  check.Tensor("out", args.out, Bit(DType::kF8E4M3), {rows, k}, Layout::kRows);
  check.Tensor("scales", args.scales, kF32Only, {rows, (k + 127) / 128}, Layout::kRows);
  if (!args.row_count.absent()) {
    check.Tensor("row_count", args.row_count, kI32Only, {1});
    check.Contents("row_count", args.row_count, 0, rows);
  }
  if (!check.ok() || rows == 0 || k == 0) return check.status();
  return device.ops().quantize_fp8(device, args);
}

absl::Status LogitsMask(Device& device, const LogitsMaskArgs& args) {
  ArgCheck check("LogitsMask", device);
  const int64_t rows = args.logits.dim(0), vocabulary = args.logits.dim(1);
  check.Tensor("logits", args.logits, kF32Only, {rows, vocabulary}, Layout::kRows);
  check.Tensor("mask", args.mask, kI32Only, {rows, (vocabulary + 31) / 32}, Layout::kRows);
  if (!check.ok() || rows == 0) return check.status();
  return device.ops().logits_mask(device, args);
}

absl::Status Sample(Device& device, const SampleArgs& args) {
  ArgCheck check("Sample", device);
  const int64_t rows = args.logits.dim(0), vocabulary = args.logits.dim(1);
  check.Tensor("logits", args.logits, kF32Only, {rows, vocabulary}, Layout::kRows);
  check.Range("vocabulary", vocabulary, 1, kMaxVocabulary);
  check.Range("params", static_cast<int64_t>(args.params.size()), rows, rows);
  check.Range("results", static_cast<int64_t>(args.results.size()), rows, rows);
  for (size_t i = 0; i < args.params.size() && check.ok(); ++i) {
    absl::Status status = CheckSampleParams(check, args.params[i], vocabulary);
    if (!status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(status.message(), " (row ", i, ")"));
    }
  }
  if (!check.ok() || rows == 0) return check.status();
  return device.ops().sample(device, args);
}

}  // namespace baton::kernels
