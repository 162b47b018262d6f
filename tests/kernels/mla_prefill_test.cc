// Attention in MHA form on shapes that the emulated GPU computes in seconds.

#include "tests/kernels/latent_cache.h"

namespace baton::kernels {
namespace {

const Shape kPrefillShapes[] = {
    {3, 16, 8, 16, 32, 16, KvFormat::kF32},
    {2, 24, 32, 40, 128, 64, KvFormat::kBF16},
    {2, 20, 10, 12, 160, 32, KvFormat::kFP8},
};

class MlaPrefillTest : public KernelTest {
 protected:
  OwnedWeight KvB(const Shape& shape, DType dtype) {
    return RandomWeight(rng_, dtype, shape.heads * (shape.nope + shape.v), shape.kv_lora);
  }
  Owned Q(const Shape& shape, int64_t rows, DType act) {
    return Random(rng_, act, {rows, shape.heads, shape.nope + shape.rope}, 0.3f);
  }
  static Owned Run(Device& device, const Cache& cache, const Owned& q, const OwnedWeight& kv_b) {
    Owned out(q.dtype(), {cache.rows, cache.shape.heads, cache.shape.v});
    EXPECT_OK(MlaPrefill(device, {.q = q.view(),
                                  .kv_b = kv_b.view(),
                                  .pages = cache.pages(),
                                  .batch = cache.batch(),
                                  .out = out.view(),
                                  .softmax_scale = Scale(cache.shape)}));
    return out;
  }
};

TEST_P(MlaPrefillTest, MatchesReference) {
  for (const Shape& shape : kPrefillShapes) {
    for (const DType act : {DType::kF32, DType::kBF16}) {
      for (const DType weight : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
        SCOPED_TRACE(Describe(shape) + DTypeName(act) + DTypeName(weight));
        const Cache cache = MakeCache(rng_, shape, {1, 3, 0, 18}, {1, 131, 9, 66});
        const OwnedWeight kv_b = KvB(shape, weight);
        const Owned q = Q(shape, cache.rows, act);
        EXPECT_TRUE(Near(Run(*reference_, cache, q, kv_b), Run(*device_, cache, q, kv_b),
                         64 * SumEpsilon(shape.kv_lora)));
      }
    }
  }
}

// A row alone, with the context that ends at it, has the bits it has in a batch: what chunks of a
// prompt rely on.
TEST_P(MlaPrefillTest, IsRowInvariant) {
  for (const Shape& shape : kPrefillShapes) {
    for (const DType act : {DType::kF32, DType::kBF16}) {
      SCOPED_TRACE(Describe(shape) + DTypeName(act));
      const Cache cache = MakeCache(rng_, shape, {18, 4}, {18, 130});
      const OwnedWeight kv_b = KvB(shape, DType::kF8E4M3);
      const Owned q = Q(shape, cache.rows, act);
      const Owned all = Run(*device_, cache, q, kv_b);
      for (const int64_t t : {int64_t{0}, int64_t{7}, int64_t{17}, int64_t{18}, int64_t{20}}) {
        const int64_t s = t < 18 ? 0 : 1;
        const Cache one = OnlyRow(cache, s, t - 18 * s);
        EXPECT_EQ(Run(*device_, one, Rows(q, t, t + 1), kv_b).bytes(), RowBytes(all, t))
            << "row " << t;
      }
    }
  }
}

BATON_INSTANTIATE_KERNEL_TEST(MlaPrefillTest);

}  // namespace
}  // namespace baton::kernels
