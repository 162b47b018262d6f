// Throughput of the ops that carry the time. Not a test: run it by hand on an idle machine.
//   kernels_bench --benchmark_filter=Linear
// Counters: FLOPS counts multiply and add; bytes_per_second counts each weight (or latent) once per
// call.

#include "benchmark/benchmark.h"
#include "tests/kernels/kernel_test_util.h"

namespace baton::kernels {
namespace {

void Report(benchmark::State& state, double flops, double bytes) {
  state.counters["FLOPS"] =
      benchmark::Counter(flops, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["bytes_per_second"] =
      benchmark::Counter(bytes, benchmark::Counter::kIsIterationInvariantRate);
}

void Check(const absl::Status& status) { BATON_CHECK_MSG(status.ok(), status.ToString()); }

// Args: rows, n, k, dtype of the weight, threads.
void BM_Linear(benchmark::State& state) {
  const int64_t rows = state.range(0), n = state.range(1), k = state.range(2);
  const DType dtype = static_cast<DType>(state.range(3));
  const auto device = MakeDevice(BackendKind::kCpu, static_cast<int>(state.range(4)));
  Rng rng(1);
  const Owned x = Random(rng, DType::kBF16, {rows, k});
  const OwnedWeight w = RandomWeight(rng, dtype, n, k);
  Owned out(DType::kBF16, {rows, n});
  for (auto _ : state) {
    Check(Linear(*device, {.x = x.view(), .w = w.view(), .out = out.view()}));
  }
  Report(state, 2.0 * static_cast<double>(rows * n * k), static_cast<double>(w.w.bytes().size()));
}
BENCHMARK(BM_Linear)
    ->UseRealTime()
    ->ArgNames({"rows", "n", "k", "dtype", "threads"})
    ->ArgsProduct({{1, 4, 32, 256}, {2048}, {2048}, {1, 2}, {1, 2}})
    ->ArgsProduct({{1, 8, 256}, {384}, {384}, {2}, {1, 2}});

// Args: tokens, experts, top_k, intermediate, hidden, threads. Gate and up projection of one layer.
void BM_GroupedLinear(benchmark::State& state) {
  const int64_t tokens = state.range(0), experts = state.range(1), top_k = state.range(2);
  const int64_t n = state.range(3), k = state.range(4);
  const auto device = MakeDevice(BackendKind::kCpu, static_cast<int>(state.range(5)));
  Rng rng(1);
  const Owned x = Random(rng, DType::kBF16, {tokens, k});
  std::vector<OwnedWeight> owned;
  std::vector<Weight> w, w2;
  for (int64_t e = 0; e < experts; ++e) owned.push_back(RandomWeight(rng, DType::kF8E4M3, n, k));
  for (int64_t e = 0; e < experts; ++e) owned.push_back(RandomWeight(rng, DType::kF8E4M3, n, k));
  for (int64_t e = 0; e < experts; ++e) {
    w.push_back(owned[static_cast<size_t>(e)].view());
    w2.push_back(owned[static_cast<size_t>(experts + e)].view());
  }
  std::vector<int32_t> chosen;
  for (int64_t i = 0; i < tokens * top_k; ++i) {
    chosen.push_back(static_cast<int32_t>((i * 7) % experts));
  }
  const Owned ids = Ints(chosen, {tokens, top_k});
  Owned offsets(DType::kI32, {experts + 1}), row_tokens(DType::kI32, {tokens * top_k});
  Owned rows(DType::kI32, {tokens, top_k});
  Check(MoePermute(*device, {ids.view(), 0, offsets.view(), row_tokens.view(), rows.view()}));
  Owned out(DType::kBF16, {tokens * top_k, n});
  GroupedLinearArgs args{.x = x.view(), .row_index = row_tokens.view(), .offsets = offsets.view()};
  args.w = w;
  args.w2 = w2;
  args.out = out.view();
  args.epilogue = Epilogue::kSiluMul;
  int64_t used = 0;
  for (int64_t e = 0; e < experts; ++e) {
    used += offsets.as<int32_t>()[e + 1] > offsets.as<int32_t>()[e] ? 1 : 0;
  }
  for (auto _ : state) Check(GroupedLinear(*device, args));
  Report(state, 4.0 * static_cast<double>(tokens * top_k * n * k),
         2.0 * static_cast<double>(used * n * k));
}
BENCHMARK(BM_GroupedLinear)
    ->UseRealTime()
    ->ArgNames({"tokens", "experts", "top_k", "n", "k", "threads"})
    ->ArgsProduct({{1, 8, 200}, {16}, {4}, {256}, {384}, {1, 2}})
    ->ArgsProduct({{1, 64}, {64}, {6}, {1408}, {2048}, {2}});

struct MlaShape {
  int64_t heads, nope, rope, v;
  int kv_lora;
};
constexpr MlaShape kDemo = {6, 64, 32, 64, 128};
constexpr MlaShape kLite = {16, 128, 64, 128, 512};

struct Mla {
  Mla(const MlaShape& shape, int64_t sequences, int64_t rows, int64_t context, int threads)
      : device(MakeDevice(BackendKind::kCpu, threads)) {
    Rng rng(1);
    const int64_t per_sequence = (context + 63) / 64;
    data = Random(rng, DType::kBF16, {sequences * per_sequence, 64 * (shape.kv_lora + shape.rope)});
    std::vector<int32_t> pages, lengths, starts = {0};
    for (int64_t i = 0; i < sequences * per_sequence; ++i) pages.push_back(static_cast<int32_t>(i));
    for (int64_t s = 0; s < sequences; ++s) {
      lengths.push_back(static_cast<int32_t>(context));
      starts.push_back(starts.back() + static_cast<int32_t>(rows));
    }
    table = Ints(pages, {sequences, per_sequence});
    context_len = Ints(lengths);
    query_start = Ints(starts);
    const int64_t total = sequences * rows;
    q = Random(rng, DType::kBF16, {total, shape.heads, shape.nope + shape.rope});
    q_lat = Random(rng, DType::kF32, {total, shape.heads, shape.kv_lora}, 0.1f);
    kv_b = RandomWeight(rng, DType::kF8E4M3, shape.heads * (shape.nope + shape.v), shape.kv_lora);
    out = Owned(DType::kBF16, {total, shape.heads, shape.v});
    TensorView bytes = data.view();
    bytes.dtype = DType::kU8;
    bytes.shape[1] *= 2;
    bytes.strides[0] *= 2;
    pages_view = {
        .data = bytes, .format = KvFormat::kBF16, .page_tokens = 64, .kv_lora = shape.kv_lora};
    pages_view.rope = static_cast<int>(shape.rope);
  }
  PagedBatch batch() const { return {query_start.view(), context_len.view(), table.view()}; }

  std::unique_ptr<Device> device;
  Owned data, table, context_len, query_start, q, q_lat, out;
  OwnedWeight kv_b;
  KvPages pages_view;
};

// Args: 0 demo / 1 V2-Lite, rows of the one sequence, threads.
void BM_MlaPrefill(benchmark::State& state) {
  const MlaShape& shape = state.range(0) == 0 ? kDemo : kLite;
  const int64_t rows = state.range(1);
  Mla mla(shape, 1, rows, rows, static_cast<int>(state.range(2)));
  for (auto _ : state) {
    Check(MlaPrefill(*mla.device, {.q = mla.q.view(),
                                   .kv_b = mla.kv_b.view(),
                                   .pages = mla.pages_view,
                                   .batch = mla.batch(),
                                   .out = mla.out.view(),
                                   .softmax_scale = 0.1f}));
  }
  const double pairs = static_cast<double>(rows * (rows + 1)) / 2;
  Report(state,
         static_cast<double>(shape.heads) *
             (2.0 * pairs * static_cast<double>(shape.nope + shape.rope + shape.v) +
              2.0 * static_cast<double>(rows * (shape.nope + shape.v) * shape.kv_lora)),
         static_cast<double>(rows * (shape.kv_lora + shape.rope) * 2));
}
BENCHMARK(BM_MlaPrefill)
    ->UseRealTime()
    ->ArgNames({"model", "rows", "threads"})
    ->ArgsProduct({{0}, {200}, {1, 2}})
    ->ArgsProduct({{1}, {512}, {1, 2}});

// Args: 0 demo / 1 V2-Lite, sequences, context, threads.
void BM_MlaDecode(benchmark::State& state) {
  const MlaShape& shape = state.range(0) == 0 ? kDemo : kLite;
  const int64_t sequences = state.range(1), context = state.range(2);
  Mla mla(shape, sequences, 1, context, static_cast<int>(state.range(3)));
  Owned out(DType::kF32, {sequences, shape.heads, shape.kv_lora});
  for (auto _ : state) {
    Check(MlaDecode(*mla.device, {.q_lat = mla.q_lat.view(),
                                  .q = mla.q.view(),
                                  .pages = mla.pages_view,
                                  .batch = mla.batch(),
                                  .out = out.view(),
                                  .softmax_scale = 0.1f}));
  }
  const double pairs = static_cast<double>(sequences * shape.heads * context);
  Report(state, 2.0 * pairs * static_cast<double>(2 * shape.kv_lora + shape.rope),
         static_cast<double>(sequences * context * (shape.kv_lora + shape.rope) * 2));
}
BENCHMARK(BM_MlaDecode)
    ->UseRealTime()
    ->ArgNames({"model", "sequences", "context", "threads"})
    ->ArgsProduct({{0}, {1, 8}, {256}, {1, 2}})
    ->ArgsProduct({{1}, {1, 8}, {2048}, {1, 2}});

// Args: 0 demo / 1 V2-Lite, rows, threads: the two per-head products around MlaDecode.
void BM_MlaAbsorbAndExpand(benchmark::State& state) {
  const MlaShape& shape = state.range(0) == 0 ? kDemo : kLite;
  const int64_t rows = state.range(1);
  Mla mla(shape, rows, 1, 1, static_cast<int>(state.range(2)));
  for (auto _ : state) {
    Check(MlaAbsorbQ(*mla.device, {.q = mla.q.view(),
                                   .kv_b = mla.kv_b.view(),
                                   .out = mla.q_lat.view(),
                                   .v = static_cast<int>(shape.v)}));
    Check(MlaExpandV(*mla.device, {mla.q_lat.view(), mla.kv_b.view(), mla.out.view()}));
  }
  Report(state, 2.0 * static_cast<double>(rows) * static_cast<double>(mla.kv_b.w.elements()),
         static_cast<double>(mla.kv_b.w.elements()));
}
BENCHMARK(BM_MlaAbsorbAndExpand)
    ->UseRealTime()
    ->ArgNames({"model", "rows", "threads"})
    ->ArgsProduct({{0, 1}, {1, 8}, {1, 2}});

}  // namespace
}  // namespace baton::kernels

BENCHMARK_MAIN();
