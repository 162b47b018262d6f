#include "tests/kernels/gpu_cases.h"

#include "tests/kernels/gpu_case_builder.h"

namespace baton::kernels {
namespace {

// Sequences with `rows` rows each at the end of a context, and their pages.
struct Context {
  KvPages pages;
  PagedBatch batch;
  double bytes = 0;  // of the entries
};
Context MakeContext(GpuCaseBuilder& make, const GpuShape& z, KvFormat format, int64_t sequences,
                    int64_t context, int64_t rows) {
  const int64_t entry = KvEntryBytes(format, z.lora, z.rope);
  const int64_t each = (context + kPageTokens - 1) / kPageTokens;
  std::vector<int32_t> table, lengths, starts = {0};
  for (int64_t i = 0; i < sequences * each; ++i) {
    // Scattered, as pages are after a while.
    table.push_back(static_cast<int32_t>(i * 7919 % (sequences * each)));
  }
  for (int64_t s = 0; s < sequences; ++s) {
    lengths.push_back(static_cast<int32_t>(context));
    starts.push_back(starts.back() + static_cast<int32_t>(rows));
  }
  Context made;
  made.pages = {.data = make.Random(
                    format == KvFormat::kBF16 ? DType::kBF16 : DType::kF8E4M3,
                    {sequences * each, kPageTokens * entry / (format == KvFormat::kBF16 ? 2 : 1)}),
                .format = format,
                .page_tokens = kPageTokens,
                .kv_lora = static_cast<int>(z.lora),
                .rope = static_cast<int>(z.rope)};
  made.pages.data.dtype = DType::kU8;
  made.pages.data.shape[1] = kPageTokens * entry;
  made.pages.data.strides[0] = kPageTokens * entry;
  made.batch = {make.Ints(starts, {sequences + 1}), make.Ints(lengths, {sequences}),
                make.Ints(table, {sequences, each})};
  made.bytes = Number(sequences * context * entry);
  return made;
}

void AddRowOps(const GpuShape& z, std::vector<GpuCaseMaker>& cases) {
  const int64_t t = z.prefill_rows, h = z.hidden;
  cases.push_back([=](Device& device) {
    GpuCaseBuilder make(device, "Embed", Text(t, " x ", h, " of ", z.vocab));
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < t; ++i) ids.push_back(static_cast<int32_t>(i * 7919 % z.vocab));
    const EmbedArgs args{make.Ints(ids, {t}), make.Random(DType::kBF16, {z.vocab, h}),
                         make.Empty(DType::kF32, {t, h})};
    return make.Case(Number(t * h) * 6, 0, GpuUnit::kF32,
                     [args](Device& on) { return Embed(on, args); });
  });
  cases.push_back([=](Device& device) {
    GpuCaseBuilder make(device, "RmsNorm", Text(t, " x ", h, " F32 to BF16"));
    const RmsNormArgs args{.x = make.Random(DType::kF32, {t, h}),
                           .weight = make.Random(DType::kBF16, {h}),
                           .out = make.Empty(DType::kBF16, {t, h})};
    return make.Case(Number(t * h) * 6, Number(t * h) * 4, GpuUnit::kF32,
                     [args](Device& on) { return RmsNorm(on, args); });
  });
  cases.push_back([=](Device& device) {
    GpuCaseBuilder make(device, "QuantizeFp8", Text(t, " x ", h));
    const QuantizeFp8Args args{make.Random(DType::kBF16, {t, h}),
                               make.Empty(DType::kF8E4M3, {t, h}),
                               make.Empty(DType::kF32, {t, (h + 127) / 128})};
    return make.Case(Number(t * h) * 3 + Bytes(args.scales), Number(t * h) * 3, GpuUnit::kF32,
                     [args](Device& on) { return QuantizeFp8(on, args); });
  });
}

void AddLinears(const GpuShape& z, std::vector<GpuCaseMaker>& cases) {
  struct Product {
    const char* name;
    int64_t rows, n, k;
    bool fp8;
    DType out;
    bool codes = false;  // x is E4M3 too
  };
  const int64_t attended = z.heads * z.v;
  for (const Product& p : {Product{"o_proj", z.decode_rows, z.hidden, attended, true, DType::kBF16},
                           {"o_proj", z.prefill_rows, z.hidden, attended, true, DType::kBF16},
                           {"o_proj", z.decode_rows, z.hidden, attended, true, DType::kBF16, true},
                           {"o_proj", z.prefill_rows, z.hidden, attended, true, DType::kBF16, true},
                           {"o_proj", z.decode_rows, z.hidden, attended, false, DType::kBF16},
                           {"o_proj", z.prefill_rows, z.hidden, attended, false, DType::kBF16},
                           {"head", z.decode_rows, z.vocab, z.hidden, false, DType::kF32}}) {
    cases.push_back([p](Device& device) {
      GpuCaseBuilder make(device, "Linear",
                          Text(p.name, " ", p.rows, " x ", p.n, " x ", p.k, ", weight ",
                               p.fp8 ? "FP8" : "BF16", p.codes ? ", rows FP8" : ""));
      if (!p.fp8) make.MarkDenseBf16();
      if (p.codes) make.MarkDenseCodes();
      const LinearArgs args{
          .x = make.Random(p.codes ? DType::kF8E4M3 : DType::kBF16, {p.rows, p.k}),
          .x_scales =
              p.codes ? make.Random(DType::kF32, {p.rows, (p.k + 127) / 128}) : TensorView{},
          .w = p.fp8 ? make.Fp8(p.n, p.k) : make.Bf16(p.n, p.k),
          .out = make.Empty(p.out, {p.rows, p.n})};
      return make.Case(Bytes(args.x) + Bytes(args.w.w) + Bytes(args.out),
                       2 * Number(p.rows) * Number(p.n) * Number(p.k),
                       p.codes ? GpuUnit::kTensorE4M3 : GpuUnit::kTensorBf16,
                       [args](Device& on) { return Linear(on, args); });
    });
  }
}

void AddAttention(const GpuShape& z, std::vector<GpuCaseMaker>& cases) {
  cases.push_back([=](Device& device) {
    const int64_t t = z.prefill_rows, h = z.tp_heads;
    GpuCaseBuilder make(device, "RopeAndPage", Text(t, " rows, ", h, " heads, BF16 pages"));
    const Context context = MakeContext(make, z, KvFormat::kBF16, 1, t, t);
    std::vector<int64_t> slots;
    std::vector<int32_t> positions;
    for (int64_t i = 0; i < t; ++i) {
      slots.push_back(i);
      positions.push_back(static_cast<int32_t>(i));
    }
    const RopeAndPageArgs args{.q = make.Random(DType::kBF16, {t, h, z.nope + z.rope}),
                               .kv_a = make.Random(DType::kBF16, {t, z.lora + z.rope}),
                               .kv_norm = make.Random(DType::kBF16, {z.lora}),
                               .cos = make.Random(DType::kF32, {t, z.rope / 2}),
                               .sin = make.Random(DType::kF32, {t, z.rope / 2}),
                               .positions = make.Ints(positions, {t}),
                               .slots = make.Longs(slots),
                               .pages = context.pages};
    return make.Case(Number(t * h * z.rope) * 4 + Bytes(args.kv_a) + context.bytes,
                     Number(t * h * z.rope) * 3, GpuUnit::kF32,
                     [args](Device& on) { return RopeAndPage(on, args); });
  });
  cases.push_back([=](Device& device) {
    const int64_t t = z.prompt, h = z.tp_heads;
    GpuCaseBuilder make(device, "MlaPrefill",
                        Text("a prompt of ", t, ", ", h, " heads, BF16 pages"));
    const Context context = MakeContext(make, z, KvFormat::kBF16, 1, t, t);
    const MlaPrefillArgs args{.q = make.Random(DType::kBF16, {t, h, z.nope + z.rope}),
                              .kv_b = make.Fp8(h * (z.nope + z.v), z.lora),
                              .pages = context.pages,
                              .batch = context.batch,
                              .out = make.Empty(DType::kBF16, {t, h, z.v}),
                              .softmax_scale = 0.1f};
    const double pairs = Number(t) * Number(t + 1) / 2;
    const double flops = Number(h) * (2 * pairs * Number(z.nope + z.rope + z.v) +
                                      2 * Number(t) * Number(z.nope + z.v) * Number(z.lora));
    return make.Case(Bytes(args.q) + Bytes(args.out) + Bytes(args.kv_b.w) + context.bytes, flops,
                     GpuUnit::kTensorBf16, [args](Device& on) { return MlaPrefill(on, args); });
  });
  for (const KvFormat format : {KvFormat::kBF16, KvFormat::kFP8}) {
    cases.push_back([=](Device& device) {
      const int64_t t = z.decode_rows, h = z.heads;
      GpuCaseBuilder make(
          device, "MlaDecode",
          Text(t, " contexts of ", z.context, ", ", h, " heads, ", KvFormatName(format), " pages"));
      const Context context = MakeContext(make, z, format, t, z.context, 1);
      const MlaDecodeArgs args{.q_lat = make.Random(DType::kBF16, {t, h, z.lora}),
                               .q = make.Random(DType::kBF16, {t, h, z.nope + z.rope}),
                               .pages = context.pages,
                               .batch = context.batch,
                               .out = make.Empty(DType::kBF16, {t, h, z.lora}),
                               .softmax_scale = 0.1f};
      return make.Case(context.bytes + Bytes(args.q_lat) + Bytes(args.out),
                       2 * Number(t * z.context) * Number(h) * Number(2 * z.lora + z.rope),
                       GpuUnit::kTensorBf16, [args](Device& on) { return MlaDecode(on, args); });
    });
  }
}

// Queries to latents and back, one product for each head.
void AddHeadMaps(const GpuShape& z, std::vector<GpuCaseMaker>& cases) {
  cases.push_back([=](Device& device) {
    const int64_t t = z.decode_rows, h = z.heads;
    GpuCaseBuilder make(device, "MlaAbsorbQ", Text(t, " rows, ", h, " heads, weight FP8"));
    const MlaAbsorbQArgs args{.q = make.Random(DType::kBF16, {t, h, z.nope + z.rope}),
                              .kv_b = make.Fp8(h * (z.nope + z.v), z.lora),
                              .out = make.Empty(DType::kF32, {t, h, z.lora}),
                              .v = static_cast<int>(z.v)};
    return make.Case(Number(t * h * z.nope) * 2 + Number(h * z.nope * z.lora) + Bytes(args.out),
                     2 * Number(t * h) * Number(z.nope * z.lora), GpuUnit::kF32,
                     [args](Device& on) { return MlaAbsorbQ(on, args); });
  });
  cases.push_back([=](Device& device) {
    const int64_t t = z.decode_rows, h = z.heads;
    GpuCaseBuilder make(device, "MlaExpandV", Text(t, " rows, ", h, " heads, weight FP8"));
    const MlaExpandVArgs args{make.Random(DType::kBF16, {t, h, z.lora}),
                              make.Fp8(h * (z.nope + z.v), z.lora),
                              make.Empty(DType::kBF16, {t, h, z.v})};
    return make.Case(Bytes(args.o_lat) + Number(h * z.v * z.lora) + Bytes(args.out),
                     2 * Number(t * h) * Number(z.v * z.lora), GpuUnit::kTensorBf16,
                     [args](Device& on) { return MlaExpandV(on, args); });
  });
}

void AddPages(const GpuShape& z, std::vector<GpuCaseMaker>& cases) {
  for (const bool pack : {true, false}) {
    cases.push_back([=](Device& device) {
      const int64_t tokens = z.message_tokens;
      GpuCaseBuilder make(device, pack ? "PagesPack" : "PagesUnpack",
                          Text(tokens, " tokens, BF16 pages"));
      const Context context = MakeContext(make, z, KvFormat::kBF16, 1, tokens, 1);
      std::vector<PageRange> ranges;
      for (int64_t i = 0; i * kPageTokens < tokens; ++i) {
        ranges.push_back({.page = static_cast<int32_t>(i),
                          .first = 0,
                          .count = static_cast<int32_t>(
                              std::min<int64_t>(kPageTokens, tokens - i * kPageTokens))});
      }
      const auto kept = make.Keep(std::move(ranges));
      const auto checksum = make.Keep(uint64_t{0});
      PagesPackArgs args{.pages = context.pages,
                         .ranges = *kept,
                         .message = make.Empty(DType::kU8, {static_cast<int64_t>(context.bytes)}),
                         .checksum = checksum.get()};
      if (pack) {
        return make.Case(2 * context.bytes, 0, GpuUnit::kF32,
                         [args](Device& on) { return PagesPack(on, args); });
      }
      const absl::Status packed = PagesPack(make.device(), args);
      BATON_CHECK_MSG(packed.ok(), packed.ToString());
      const PagesUnpackArgs back{
          .pages = args.pages, .ranges = *kept, .message = args.message, .checksum = *checksum};
      return make.Case(3 * context.bytes, 0, GpuUnit::kF32,
                       [back](Device& on) { return PagesUnpack(on, back); });
    });
  }
}

void AddLogits(const GpuShape& z, std::vector<GpuCaseMaker>& cases) {
  const int64_t t = z.decode_rows, v = z.vocab;
  cases.push_back([=](Device& device) {
    GpuCaseBuilder make(device, "LogitsMask", Text(t, " x ", v, ", nothing masked"));
    const int64_t words = (v + 31) / 32;
    const LogitsMaskArgs args{
        make.Random(DType::kF32, {t, v}),
        make.Ints(std::vector<int32_t>(static_cast<size_t>(t * words), -1), {t, words})};
    return make.Case(Bytes(args.mask), 0, GpuUnit::kF32,
                     [args](Device& on) { return LogitsMask(on, args); });
  });
  for (const bool greedy : {true, false}) {
    cases.push_back([=](Device& device) {
      GpuCaseBuilder make(device, "Sample",
                          Text(t, " x ", v, greedy ? ", greedy" : ", top-k 40, top-p 0.95"));
      SampleParams params;
      params.temperature = greedy ? 0.0f : 0.8f;
      params.top_k = greedy ? 0 : 40;
      params.top_p = greedy ? 1.0f : 0.95f;
      const auto all = make.Keep(std::vector<SampleParams>(static_cast<size_t>(t), params));
      const auto results = make.Keep(std::vector<SampleResult>(static_cast<size_t>(t)));
      SampleArgs args{.logits = make.Random(DType::kF32, {t, v})};
      args.params = *all;
      args.results = absl::MakeSpan(*results);
      return make.Case(Bytes(args.logits), 0, GpuUnit::kF32,
                       [args](Device& on) { return Sample(on, args); });
    });
  }
}

}  // namespace

std::vector<GpuCaseMaker> GpuCases(GpuSizes sizes) {
  const GpuShape z = sizes == GpuSizes::kTiny ? kTinyShape : GpuShape{};
  std::vector<GpuCaseMaker> cases;
  AddRowOps(z, cases);
  AddLinears(z, cases);
  AddAttention(z, cases);
  AddHeadMaps(z, cases);
  AddPages(z, cases);
  AddMoeCases(z, cases);
  AddLogits(z, cases);
  return cases;
}

}  // namespace baton::kernels
