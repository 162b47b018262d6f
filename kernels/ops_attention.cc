// Checks of the ops that touch latent pages (ops.h, second part).

#include "absl/strings/str_cat.h"
#include "kernels/check_args.h"
#include "kernels/op_table.h"
#include "kernels/ops.h"

namespace baton::kernels {
namespace {

constexpr int64_t kMaxHeads = 4096;
constexpr int64_t kMaxHeadDim = 4096;

// kv_b is [h * (nope + v), kv_lora] for some nope >= 1; returns that nope, or 0 after recording the
// error.
int64_t CheckKvB(ArgCheck& check, const Weight& kv_b, int64_t heads, int64_t v, int64_t kv_lora) {
  check.Range("heads", heads, 1, kMaxHeads);
  check.Range("v", v, 1, kMaxHeadDim);
  if (!check.ok()) return 0;
  const int64_t n = kv_b.w.dim(0);
  if (n % heads != 0 || n / heads <= v) {
    check.Fail(absl::StrCat("kv_b has ", n, " rows, expected heads * (nope + v) with ", heads,
                            " heads and v = ", v));
    return 0;
  }
  check.WeightMatrix("kv_b", kv_b, n, kv_lora);
  return n / heads - v;
}

int64_t CheckRanges(ArgCheck& check, const KvPages& pages, absl::Span<const PageRange> ranges) {
  int64_t tokens = 0;
  for (const PageRange& range : ranges) {
    check.Range("ranges.page", range.page, 0, pages.data.dim(0) - 1);
    check.Range("ranges.first", range.first, 0, pages.page_tokens - 1);
    check.Range("ranges.count", range.count, 0, pages.page_tokens - range.first);
    tokens += range.count;
  }
  return tokens * KvEntryBytes(pages.format, pages.kv_lora, pages.rope);
}

}  // namespace

const char* KvFormatName(KvFormat format) {
  switch (format) {
    case KvFormat::kBF16:
      return "bf16";
    case KvFormat::kFP8:
      return "fp8";
    case KvFormat::kF32:
      return "f32";
  }
  return "?";
}

int64_t KvEntryBytes(KvFormat format, int64_t kv_lora, int64_t rope) {
  switch (format) {
    case KvFormat::kBF16:
      return 2 * (kv_lora + rope);
    case KvFormat::kFP8:
      return kv_lora + 4 * ((kv_lora + 127) / 128) + 2 * rope;
    case KvFormat::kF32:
      return 4 * (kv_lora + rope);
  }
  return 0;
}

absl::Status RopeAndPage(Device& device, const RopeAndPageArgs& args) {
  ArgCheck check("RopeAndPage", device);
  const KvPages& pages = args.pages;
  const int64_t rows = args.positions.dim(0), positions = args.cos.dim(0);
  check.Pages(pages);
  if (args.q.absent() && args.kv_a.absent()) check.Fail("q and kv_a are both absent");
  if (!args.q.absent()) {
    check.Tensor("q", args.q, kFloats, {rows, args.q.dim(1), args.q.dim(2)});
    check.Range("q's head size", args.q.dim(2), pages.rope, kMaxHeadDim);
  }
  if (!args.kv_a.absent()) {
    check.Tensor("kv_a", args.kv_a, kFloats, {rows, pages.kv_lora + pages.rope}, Layout::kRows);
    if (!args.q.absent()) check.SameDType("q", args.q, "kv_a", args.kv_a);
    check.Tensor("kv_norm", args.kv_norm, kFloats, {pages.kv_lora});
    check.Tensor("slots", args.slots, Bit(DType::kI64), {rows});
    check.RangeF("eps", args.eps, 0, 1);
    check.Contents("slots", args.slots, INT64_MIN, pages.data.dim(0) * pages.page_tokens - 1);
  }
  check.Tensor("cos", args.cos, kF32Only, {positions, pages.rope / 2});
  check.Tensor("sin", args.sin, kF32Only, {positions, pages.rope / 2});
  check.Tensor("positions", args.positions, kI32Only, {rows});
  check.Contents("positions", args.positions, 0, positions - 1);
  if (!check.ok() || rows == 0) return check.status();
  return device.ops().rope_and_page(device, args);
}

absl::Status MlaPrefill(Device& device, const MlaPrefillArgs& args) {
  ArgCheck check("MlaPrefill", device);
  const int64_t rows = args.q.dim(0), heads = args.q.dim(1), v = args.out.dim(2);
  check.Pages(args.pages);
  const int64_t nope = CheckKvB(check, args.kv_b, heads, v, args.pages.kv_lora);
  check.Tensor("q", args.q, kFloats, {rows, heads, nope + args.pages.rope});
  check.Tensor("out", args.out, kFloats, {rows, heads, v});
  check.SameDType("q", args.q, "out", args.out);
  check.RangeF("softmax_scale", args.softmax_scale, 1e-30, 1e30);
  check.Batch(args.batch, args.pages, rows);
  if (!check.ok() || rows == 0) return check.status();
  return device.ops().mla_prefill(device, args);
}

absl::Status MlaAbsorbQ(Device& device, const MlaAbsorbQArgs& args) {
  ArgCheck check("MlaAbsorbQ", device);
  const int64_t rows = args.q.dim(0), heads = args.q.dim(1), kv_lora = args.out.dim(2);
  const int64_t nope = CheckKvB(check, args.kv_b, heads, args.v, kv_lora);
  check.Range("q's head size", args.q.dim(2), nope, kMaxHeadDim);
  check.Tensor("q", args.q, kFloats, {rows, heads, args.q.dim(2)});
  check.Tensor("out", args.out, kFloats, {rows, heads, kv_lora});
  check.F32OrAct("out", args.out, args.q);
  if (!check.ok() || rows == 0) return check.status();
  return device.ops().mla_absorb_q(device, args);
}

absl::Status MlaDecode(Device& device, const MlaDecodeArgs& args) {
  ArgCheck check("MlaDecode", device);
  const int64_t rows = args.q.dim(0), heads = args.q.dim(1), kv_lora = args.pages.kv_lora;
  check.Pages(args.pages);
  check.Range("heads", heads, 1, kMaxHeads);
  check.Range("q's head size", args.q.dim(2), args.pages.rope, kMaxHeadDim);
  check.Tensor("q", args.q, kFloats, {rows, heads, args.q.dim(2)});
  check.Tensor("q_lat", args.q_lat, kFloats, {rows, heads, kv_lora});
  check.F32OrAct("q_lat", args.q_lat, args.q);
  check.Tensor("out", args.out, kFloats, {rows, heads, kv_lora});
  check.F32OrAct("out", args.out, args.q);
  check.RangeF("softmax_scale", args.softmax_scale, 1e-30, 1e30);
  check.Batch(args.batch, args.pages, rows);
  if (!check.ok() || rows == 0) return check.status();
  return device.ops().mla_decode(device, args);
}

absl::Status MlaExpandV(Device& device, const MlaExpandVArgs& args) {
  ArgCheck check("MlaExpandV", device);
  const int64_t rows = args.o_lat.dim(0), heads = args.o_lat.dim(1), v = args.out.dim(2);
  CheckKvB(check, args.kv_b, heads, v, args.o_lat.dim(2));
  check.Tensor("o_lat", args.o_lat, kFloats, {rows, heads, args.o_lat.dim(2)});
  check.Tensor("out", args.out, kFloats, {rows, heads, v});
  check.F32OrAct("o_lat", args.o_lat, args.out);
  if (!check.ok() || rows == 0) return check.status();
  return device.ops().mla_expand_v(device, args);
}

absl::Status PagesPack(Device& device, const PagesPackArgs& args) {
  ArgCheck check("PagesPack", device);
  check.Pages(args.pages);
  const int64_t bytes = CheckRanges(check, args.pages, args.ranges);
  check.Tensor("message", args.message, Bit(DType::kU8), {bytes});
  if (args.checksum == nullptr) check.Fail("checksum is null, expected where to write it");
  if (!check.ok()) return check.status();
  return device.ops().pages_pack(device, args);
}

absl::Status PagesUnpack(Device& device, const PagesUnpackArgs& args) {
  ArgCheck check("PagesUnpack", device);
  check.Pages(args.pages);
  const int64_t bytes = CheckRanges(check, args.pages, args.ranges);
  check.Tensor("message", args.message, Bit(DType::kU8), {bytes});
  if (!check.ok()) return check.status();
  return device.ops().pages_unpack(device, args);
}

}  // namespace baton::kernels
