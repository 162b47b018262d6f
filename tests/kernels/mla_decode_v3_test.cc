// Attention on latents as wide as V3's, for which a GPU may have kernels of its own: both formats,
// pages smaller and larger than a block of keys, one head to more than a tile of them.

#include "tests/kernels/mla_decode_fixture.h"

namespace baton::kernels {
namespace {

const Shape kV3Shapes[] = {
    {3, 8, 64, 8, 512, 64, KvFormat::kBF16},  {70, 8, 64, 8, 512, 16, KvFormat::kBF16},
    {16, 8, 64, 8, 512, 32, KvFormat::kFP8},  {66, 8, 64, 8, 512, 64, KvFormat::kFP8},
    {2, 8, 64, 8, 512, 128, KvFormat::kBF16}, {2, 8, 64, 8, 512, 128, KvFormat::kFP8},
};

class MlaDecodeV3Test : public MlaDecodeFixture {
 protected:
  // Schedules of the emulation share the shapes out, as one costs a second with the race check.
  bool Takes(size_t index) const {
    return GetParam().seed == 0 || (GetParam().seed / 2 + index) % 3 == 0;
  }
  void ExpectNearReference(const Shape& shape, const std::vector<int32_t>& rows,
                           const std::vector<int32_t>& contexts) {
    SCOPED_TRACE(Describe(shape));
    const Cache cache = MakeCache(rng_, shape, rows, contexts);
    const Queries queries = MakeQueries(shape, cache.rows, DType::kBF16, DType::kBF16);
    EXPECT_TRUE(Near(Run(*reference_, cache, queries, DType::kF32),
                     Run(*device_, cache, queries, DType::kF32), 64 * SumEpsilon(shape.kv_lora)));
  }
};

// A sequence without rows, a context of one key, one that ends in its second block, one of two
// splits.
TEST_P(MlaDecodeV3Test, MatchesReference) {
  for (size_t i = 0; i < std::size(kV3Shapes); ++i) {
    const Shape& shape = kV3Shapes[i];
    if (!Takes(i)) continue;
    if (shape.heads > 16) {
      ExpectNearReference(shape, {1, 0, 1}, {67, 5, 1});
    } else {
      ExpectNearReference(shape, {1, 2}, {65, 258});
    }
  }
}

TEST_P(MlaDecodeV3Test, IsRowInvariant) {
  for (const size_t i : {0, 2}) {
    const Shape& shape = kV3Shapes[i];
    if (!Takes(i)) continue;
    SCOPED_TRACE(Describe(shape));
    ExpectRowInvariant(shape, DType::kBF16, DType::kBF16, {2, 1}, {66, 258});
  }
}

TEST_P(MlaDecodeV3Test, HeadsAreIndependentOfTheirNumber) {
  for (const size_t i : {1, 3}) {
    const Shape& shape = kV3Shapes[i];
    if (!Takes(i)) continue;
    SCOPED_TRACE(Describe(shape));
    ExpectHeadsIndependent(shape, 70);
  }
}

// Rows on both sides of the context from which splits are longer: their own length decides, not
// that of others.
TEST_P(MlaDecodeV3Test, LongContextsInABatchHaveTheBitsTheyHaveAlone) {
  if (GetParam().check_races || GetParam().seed > 4) return;  // the same kernels, at great cost
  ExpectNearReference(kV3Shapes[4], {1}, {2120});
  ExpectRowInvariant(kV3Shapes[0], DType::kBF16, DType::kBF16, {1, 2}, {3, 2049});
}

BATON_INSTANTIATE_KERNEL_TEST(MlaDecodeV3Test);

}  // namespace
}  // namespace baton::kernels
