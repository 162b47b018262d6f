// Attention on latents alone: formats, numbers of heads and splits that attention_test's whole
// steps do not reach, or reach at too great a cost for the emulated GPU.

#include "tests/kernels/latent_cache.h"

namespace baton::kernels {
namespace {

// Two tiles of 16 heads and a bit, groups of 128 that end early, latents too wide for tiles.
const Shape kDecodeShapes[] = {
    {3, 16, 8, 16, 32, 16, KvFormat::kF32},  {6, 16, 32, 16, 128, 64, KvFormat::kBF16},
    {5, 8, 10, 8, 160, 32, KvFormat::kFP8},  {34, 8, 16, 8, 64, 16, KvFormat::kFP8},
    {18, 8, 12, 8, 96, 16, KvFormat::kBF16}, {2, 8, 64, 8, 512, 64, KvFormat::kFP8},
    {9, 8, 64, 8, 576, 64, KvFormat::kBF16},
};

class MlaDecodeTest : public KernelTest {
 protected:
  struct Queries {
    Owned lat, q;
  };
  Queries MakeQueries(const Shape& shape, int64_t rows, DType lat, DType act) {
    return {Random(rng_, lat, {rows, shape.heads, shape.kv_lora}, 0.2f),
            Random(rng_, act, {rows, shape.heads, shape.nope + shape.rope}, 0.3f)};
  }
  static Owned Run(Device& device, const Cache& cache, const Queries& queries, DType out_type) {
    Owned out(out_type, {cache.rows, cache.shape.heads, cache.shape.kv_lora});
    EXPECT_OK(MlaDecode(device, {.q_lat = queries.lat.view(),
                                 .q = queries.q.view(),
                                 .pages = cache.pages(),
                                 .batch = cache.batch(),
                                 .out = out.view(),
                                 .softmax_scale = Scale(cache.shape)}));
    return out;
  }
};

struct Types {
  DType lat, act;
};
constexpr Types kTypes[] = {
    {DType::kF32, DType::kF32}, {DType::kF32, DType::kBF16}, {DType::kBF16, DType::kBF16}};

// Sequences without rows, a context of one key, one that ends in its third block, one of two
// splits.
TEST_P(MlaDecodeTest, MatchesReference) {
  for (const Shape& shape : kDecodeShapes) {
    for (const Types& types : kTypes) {
      SCOPED_TRACE(Describe(shape) + DTypeName(types.lat) + DTypeName(types.act));
      const bool wide = shape.kv_lora > 500 || shape.heads > 30;
      const Cache cache = wide ? MakeCache(rng_, shape, {1, 1}, {67, 3})
                               : MakeCache(rng_, shape, {1, 0, 2, 1}, {1, 9, 130, 260});
      const Queries queries = MakeQueries(shape, cache.rows, types.lat, types.act);
      EXPECT_TRUE(Near(Run(*reference_, cache, queries, types.act),
                       Run(*device_, cache, queries, types.act), 64 * SumEpsilon(shape.kv_lora)));
    }
  }
}

// A row alone, with the context that ends at it, has the bits it has in a batch.
TEST_P(MlaDecodeTest, IsRowInvariant) {
  for (const Shape& shape : {kDecodeShapes[0], kDecodeShapes[1], kDecodeShapes[2]}) {
    for (const Types& types : {kTypes[0], kTypes[1]}) {
      SCOPED_TRACE(Describe(shape) + DTypeName(types.act));
      const std::vector<int32_t> queries_of = {1, 3, 2};
      const Cache cache = MakeCache(rng_, shape, queries_of, {1, 66, 258});
      const Queries queries = MakeQueries(shape, cache.rows, types.lat, types.act);
      const Owned all = Run(*device_, cache, queries, DType::kF32);
      int64_t t = 0;
      for (size_t s = 0; s < queries_of.size(); ++s) {
        for (int32_t r = 0; r < queries_of[s]; ++r, ++t) {
          const Cache one = OnlyRow(cache, static_cast<int64_t>(s), r);
          const Queries own = {Rows(queries.lat, t, t + 1), Rows(queries.q, t, t + 1)};
          EXPECT_EQ(Run(*device_, one, own, DType::kF32).bytes(), RowBytes(all, t)) << "row " << t;
        }
      }
    }
  }
}

// Some of the heads alone give those heads of the whole, whichever tile they fall into.
TEST_P(MlaDecodeTest, HeadsAreIndependentOfTheirNumber) {
  const Shape& shape = kDecodeShapes[4];
  const Cache cache = MakeCache(rng_, shape, {1}, {70});
  const Queries queries = MakeQueries(shape, 1, DType::kBF16, DType::kBF16);
  const Owned all = Run(*device_, cache, queries, DType::kF32);
  for (const int64_t head : {int64_t{0}, int64_t{9}, shape.heads - 1}) {
    const auto part = [&](const Owned& whole) {
      Owned one(whole.dtype(), {1, 1, whole.shape()[2]});
      const size_t bytes = one.bytes().size();
      std::memcpy(one.as<uint8_t>(), whole.bytes().data() + static_cast<size_t>(head) * bytes,
                  bytes);
      return one;
    };
    Cache single = cache;
    single.shape.heads = 1;
    EXPECT_EQ(Run(*device_, single, {part(queries.lat), part(queries.q)}, DType::kF32).bytes(),
              part(all).bytes())
        << "head " << head;
  }
}

BATON_INSTANTIATE_KERNEL_TEST(MlaDecodeTest);

}  // namespace
}  // namespace baton::kernels
