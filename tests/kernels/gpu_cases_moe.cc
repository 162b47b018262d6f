// The ops of mixtures of experts.

#include "tests/kernels/gpu_case_builder.h"

namespace baton::kernels {
namespace {

// Every token's experts, evenly spread.
std::vector<int32_t> Choices(int64_t tokens, int64_t top_k, int64_t experts) {
  std::vector<int32_t> chosen;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < top_k; ++i) {
      chosen.push_back(static_cast<int32_t>((t * 13 + i * (experts / top_k)) % experts));
    }
  }
  return chosen;
}

// `codes`: the rows are E4M3 too.
GpuCase GateAndUp(Device& device, const GpuShape& z, int64_t tokens, bool codes) {
  const int64_t h = z.hidden, e = z.local_experts, rows = tokens * z.top_k * e / z.experts;
  GpuCaseBuilder make(device, "GroupedLinear",
                      Text("gate and up of ", rows, " rows, ", e, " experts, weight FP8",
                           codes ? ", rows FP8" : ""));
  std::vector<int32_t> offsets;
  for (int64_t i = 0; i <= e; ++i) offsets.push_back(static_cast<int32_t>(rows * i / e));
  GroupedLinearArgs args{.x = make.Random(codes ? DType::kF8E4M3 : DType::kBF16, {rows, h}),
                         .offsets = make.Ints(offsets, {e + 1}),
                         .out = make.Empty(DType::kBF16, {rows, z.ffn}),
                         .epilogue = Epilogue::kSiluMul};
  if (codes) args.x_scales = make.Random(DType::kF32, {rows, (h + 127) / 128});
  args.w = *make.Keep(make.Fp8Experts(e, z.ffn, h));
  args.w2 = *make.Keep(make.Fp8Experts(e, z.ffn, h));
  return make.Case(Bytes(args.x) + Bytes(args.out) + 2 * Number(e * z.ffn * h),
                   4 * Number(rows) * Number(z.ffn * h),
                   codes ? GpuUnit::kTensorE4M3 : GpuUnit::kTensorBf16,
                   [args](Device& on) { return GroupedLinear(on, args); });
}

void AddMoe(const GpuShape& z, std::vector<GpuCaseMaker>& cases) {
  const int64_t h = z.hidden, k = z.top_k;
  cases.push_back([=](Device& device) {
    const int64_t t = z.prefill_rows;
    GpuCaseBuilder make(device, "MoeGate", Text(t, " rows, ", z.experts, " experts"));
    MoeGateArgs args{.x = make.Random(DType::kBF16, {t, h}),
                     .gate = make.Random(DType::kBF16, {z.experts, h}),
                     .bias = make.Random(DType::kF32, {z.experts}),
                     .n_group = static_cast<int>(z.groups),
                     .topk_group = static_cast<int>(z.top_groups),
                     .top_k = static_cast<int>(k)};
    args.experts = make.Empty(DType::kI32, {t, k});
    args.weights = make.Empty(DType::kF32, {t, k});
    return make.Case(Bytes(args.x) + Bytes(args.gate), 2 * Number(t * h) * Number(z.experts),
                     GpuUnit::kTensorBf16, [args](Device& on) { return MoeGate(on, args); });
  });
  cases.push_back([=](Device& device) {
    const int64_t t = z.prefill_rows;
    GpuCaseBuilder make(device, "MoePermute", Text(t * k, " pairs, ", z.local_experts, " experts"));
    const MoePermuteArgs args{.experts = make.Ints(Choices(t, k, z.experts), {t, k}),
                              .offsets = make.Empty(DType::kI32, {z.local_experts + 1}),
                              .row_tokens = make.Empty(DType::kI32, {t * k}),
                              .rows = make.Empty(DType::kI32, {t, k})};
    return make.Case(3 * Number(t * k) * 4, 0, GpuUnit::kF32,
                     [args](Device& on) { return MoePermute(on, args); });
  });
  for (const bool codes : {false, true}) {
    for (const int64_t tokens : {z.decode_rows * z.ranks, z.prefill_rows}) {
      cases.push_back([=](Device& device) { return GateAndUp(device, z, tokens, codes); });
    }
  }
  cases.push_back([=](Device& device) {
    const int64_t t = z.prefill_rows;
    GpuCaseBuilder make(device, "MoeCombine", Text(t, " rows of ", k, " experts"));
    std::vector<int32_t> rows;
    for (int64_t i = 0; i < t * k; ++i) rows.push_back(static_cast<int32_t>(i));
    const MoeCombineArgs args{.y = make.Random(DType::kBF16, {t * k, h}),
                              .rows = make.Ints(rows, {t, k}),
                              .experts = make.Ints(Choices(t, k, z.experts), {t, k}),
                              .weights = make.Random(DType::kF32, {t, k}),
                              .shared = make.Random(DType::kBF16, {t, h}),
                              .out = make.Empty(DType::kF32, {t, h})};
    return make.Case(Bytes(args.y) + Bytes(args.shared) + Bytes(args.out),
                     Number(t * h) * Number(2 * k + 1), GpuUnit::kF32,
                     [args](Device& on) { return MoeCombine(on, args); });
  });
  cases.push_back([=](Device& device) {
    const int64_t t = z.prefill_rows;
    GpuCaseBuilder make(device, "MoeCount", Text(t * k, " choices of ", z.experts, " experts"));
    const MoeCountArgs args{
        make.Ints(Choices(t, k, z.experts), {t, k}),
        make.Ints(std::vector<int32_t>(static_cast<size_t>(z.experts)), {z.experts})};
    return make.Case(Bytes(args.experts), 0, GpuUnit::kF32,
                     [args](Device& on) { return MoeCount(on, args); });
  });
}

// Rows to the experts' ranks and back, for the tokens of a decode step.
void AddDispatch(const GpuShape& z, std::vector<GpuCaseMaker>& cases) {
  const int64_t t = z.decode_rows, h = z.hidden, k = z.top_k;
  const int slots = static_cast<int>(z.experts / z.ranks);
  const RecordLayout layout{.hidden = h, .choices = static_cast<int>(k)};
  const auto plan = [=](GpuCaseBuilder& make) {
    return DispatchPlanArgs{.physical = make.Ints(Choices(t, k, z.experts), {t, k}),
                            .slots_per_rank = slots,
                            .counts = make.Empty(DType::kI32, {z.ranks, 2}),
                            .records = make.Empty(DType::kI32, {t, k}),
                            .home_rows = make.Empty(DType::kI32, {t, k})};
  };
  const auto planned = [](GpuCaseBuilder& make, const DispatchPlanArgs& args) {
    const absl::Status status = DispatchPlan(make.device(), args);
    BATON_CHECK_MSG(status.ok(), status.ToString());
  };
  cases.push_back([=](Device& device) {
    GpuCaseBuilder make(device, "DispatchPlan", Text(t, " rows for ", z.ranks, " ranks"));
    const DispatchPlanArgs args = plan(make);
    return make.Case(3 * Bytes(args.physical), 0, GpuUnit::kF32,
                     [args](Device& on) { return DispatchPlan(on, args); });
  });
  cases.push_back([=](Device& device) {
    GpuCaseBuilder make(device, "DispatchPack", Text(t, " rows for ", z.ranks, " ranks, BF16"));
    const DispatchPlanArgs made = plan(make);
    planned(make, made);
    const DispatchPackArgs args{layout,
                                make.Random(DType::kBF16, {t, h}),
                                {},
                                made,
                                make.Empty(DType::kU8, {t * k, layout.bytes()})};
    return make.Case(Bytes(args.x) + Bytes(args.out), 0, GpuUnit::kF32,
                     [args](Device& on) { return DispatchPack(on, args); });
  });
  cases.push_back([=](Device& device) {
    GpuCaseBuilder make(device, "DispatchUnpack", Text(t * k, " records, BF16"));
    const DispatchPlanArgs made = plan(make);
    planned(make, made);
    const TensorView records = make.Empty(DType::kU8, {t * k, layout.bytes()});
    const DispatchPackArgs pack{layout, make.Random(DType::kBF16, {t, h}), {}, made, records};
    const absl::Status packed = DispatchPack(make.device(), pack);
    BATON_CHECK_MSG(packed.ok(), packed.ToString());
    const DispatchUnpackArgs args{layout, records, slots, {}, make.Empty(DType::kI32, {t * k, k})};
    return make.Case(2 * Bytes(args.slots), 0, GpuUnit::kF32,
                     [args](Device& on) { return DispatchUnpack(on, args); });
  });
  cases.push_back([=](Device& device) {
    GpuCaseBuilder make(device, "ReturnPlan", Text(t * z.ranks, " records"));
    std::vector<int32_t> pairs;
    for (int64_t i = 0; i < t * z.ranks * k; ++i) {
      pairs.push_back(i % z.ranks == 0 ? static_cast<int32_t>(i / z.ranks) : -1);
    }
    const ReturnPlanArgs args{make.Ints(pairs, {t * z.ranks, k}), static_cast<int>(t),
                              static_cast<int>(t * k), make.Empty(DType::kI32, {z.ranks * t * k})};
    return make.Case(Bytes(args.pair_rows) + Bytes(args.index), 0, GpuUnit::kF32,
                     [args](Device& on) { return ReturnPlan(on, args); });
  });
  cases.push_back([=](Device& device) {
    GpuCaseBuilder make(device, "CopyRows", Text(t * k, " rows of ", h, ", BF16"));
    std::vector<int32_t> index;
    for (int64_t i = 0; i < t * k; ++i) index.push_back(static_cast<int32_t>((i * 7) % (t * k)));
    const CopyRowsArgs args{make.Random(DType::kBF16, {t * k, h}), make.Ints(index, {t * k}),
                            make.Empty(DType::kBF16, {t * k, h})};
    return make.Case(2 * Bytes(args.out), 0, GpuUnit::kF32,
                     [args](Device& on) { return CopyRows(on, args); });
  });
}

}  // namespace

void AddMoeCases(const GpuShape& z, std::vector<GpuCaseMaker>& cases) {
  AddMoe(z, cases);
  AddDispatch(z, cases);
}

}  // namespace baton::kernels
