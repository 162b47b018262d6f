// Attention on latents alone: formats, numbers of heads and splits that attention_test's whole
// steps do not reach, or reach at too great a cost for the emulated GPU.

#include "tests/kernels/mla_decode_fixture.h"

namespace baton::kernels {
namespace {

// Two tiles of 16 heads and a bit, groups of 128 that end early, latents too wide for tiles.
const Shape kDecodeShapes[] = {
    {3, 16, 8, 16, 32, 16, KvFormat::kF32},  {6, 16, 32, 16, 128, 64, KvFormat::kBF16},
    {5, 8, 10, 8, 160, 32, KvFormat::kFP8},  {34, 8, 16, 8, 64, 16, KvFormat::kFP8},
    {18, 8, 12, 8, 96, 16, KvFormat::kBF16}, {2, 8, 64, 8, 512, 64, KvFormat::kFP8},
    {9, 8, 64, 8, 576, 64, KvFormat::kBF16},
};

class MlaDecodeTest : public MlaDecodeFixture {};

constexpr Types kTypes[] = {
    {DType::kF32, DType::kF32}, {DType::kF32, DType::kBF16}, {DType::kBF16, DType::kBF16}};

// Sequences without rows, a context of one key, one that ends in its third block, one of two
// splits.
TEST_P(MlaDecodeTest, MatchesReference) {
  CaseShare share(GetParam(), 5);
  for (const Shape& shape : kDecodeShapes) {
    for (const Types& types : kTypes) {
      if (!share.Mine()) continue;
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
  CaseShare share(GetParam(), 5);
  for (const Shape& shape : {kDecodeShapes[0], kDecodeShapes[1], kDecodeShapes[2]}) {
    for (const Types& types : {kTypes[0], kTypes[1]}) {
      if (!share.Mine()) continue;
      SCOPED_TRACE(Describe(shape) + DTypeName(types.act));
      ExpectRowInvariant(shape, types.lat, types.act, {1, 3, 2}, {1, 66, 258});
    }
  }
}

// Some of the heads alone give those heads of the whole, whichever tile they fall into.
TEST_P(MlaDecodeTest, HeadsAreIndependentOfTheirNumber) {
  ExpectHeadsIndependent(kDecodeShapes[4], 70);
}

// Working memory decides how many rows are computed at a time, and nothing else.
TEST_P(MlaDecodeTest, WorkingMemoryChangesNoBit) {
  const auto frugal = FrugalDevice(GetParam());
  for (const Shape& shape : {kDecodeShapes[0], kDecodeShapes[2]}) {
    SCOPED_TRACE(Describe(shape));
    const Cache cache = MakeCache(rng_, shape, {1, 0, 2}, {9, 3, 70});
    const Queries queries = MakeQueries(shape, cache.rows, DType::kF32, DType::kBF16);
    EXPECT_EQ(Run(*device_, cache, queries, DType::kF32).bytes(),
              Run(*frugal, cache, queries, DType::kF32).bytes());
  }
}

BATON_INSTANTIATE_KERNEL_TEST(MlaDecodeTest);

}  // namespace
}  // namespace baton::kernels
