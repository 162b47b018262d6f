// Both forms of attention, against the reference and against each other.

#include "tests/kernels/latent_cache.h"

namespace baton::kernels {
namespace {

class AttentionTest : public KernelTest {
 protected:
  // Weights such that expanded keys have a spread of about one.
  OwnedWeight KvB(const Shape& shape, DType dtype) {
    return RandomWeight(rng_, dtype, shape.heads * (shape.nope + shape.v), shape.kv_lora);
  }
  Owned Q(const Shape& shape, int64_t rows, DType act) {
    return Random(rng_, act, {rows, shape.heads, shape.nope + shape.rope}, 0.3f);
  }
  static Owned Prefill(Device& device, const Cache& cache, const Owned& q,
                       const OwnedWeight& kv_b) {
    Owned out(q.dtype(), {cache.rows, cache.shape.heads, cache.shape.v});
    EXPECT_OK(MlaPrefill(device, {.q = q.view(),
                                  .kv_b = kv_b.view(),
                                  .pages = cache.pages(),
                                  .batch = cache.batch(),
                                  .out = out.view(),
                                  .softmax_scale = Scale(cache.shape)}));
    return out;
  }
  static Owned Decode(Device& device, const Cache& cache, const Owned& q_lat, const Owned& q,
                      DType out_type) {
    Owned out(out_type, {cache.rows, cache.shape.heads, cache.shape.kv_lora});
    EXPECT_OK(MlaDecode(device, {.q_lat = q_lat.view(),
                                 .q = q.view(),
                                 .pages = cache.pages(),
                                 .batch = cache.batch(),
                                 .out = out.view(),
                                 .softmax_scale = Scale(cache.shape)}));
    return out;
  }
};

TEST_P(AttentionTest, PrefillMatchesReference) {
  CaseShare share(GetParam(), 9);
  for (const Shape& shape : kShapes) {
    for (DType act : {DType::kF32, DType::kBF16}) {
      if (!share.Mine()) continue;
      const DType weight = shape.format == KvFormat::kFP8 ? DType::kF8E4M3 : DType::kBF16;
      SCOPED_TRACE(Describe(shape));
      const bool large = shape.kv_lora == 512;
      const Cache cache = large ? MakeCache(rng_, shape, {3, 1}, {67, 1})
                                : MakeCache(rng_, shape, {1, 66, 0, 5}, {1, 66, 9, 131});
      const OwnedWeight kv_b = KvB(shape, weight);
      const Owned q = Q(shape, cache.rows, act);
      EXPECT_TRUE(Near(Prefill(*reference_, cache, q, kv_b), Prefill(*device_, cache, q, kv_b),
                       64 * SumEpsilon(shape.kv_lora)));
    }
  }
}

TEST_P(AttentionTest, DecodeStepsMatchReference) {
  CaseShare share(GetParam(), 9);
  for (const Shape& shape : kShapes) {
    for (DType act : {DType::kF32, DType::kBF16}) {
      for (DType weight : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
        if (!share.Mine()) continue;
        SCOPED_TRACE(Describe(shape) + DTypeName(act) + DTypeName(weight));
        const Cache cache = MakeCache(rng_, shape, {1, 3, 1}, {1, 70, 260});
        const OwnedWeight kv_b = KvB(shape, weight);
        const Owned q = Q(shape, cache.rows, act);
        Owned lat(act, {cache.rows, shape.heads, shape.kv_lora}), lat2 = lat;
        MlaAbsorbQArgs absorb{
            .q = q.view(), .kv_b = kv_b.view(), .out = lat.view(), .v = static_cast<int>(shape.v)};
        EXPECT_OK(MlaAbsorbQ(*reference_, absorb));
        absorb.out = lat2.view();
        EXPECT_OK(MlaAbsorbQ(*device_, absorb));
        EXPECT_TRUE(Near(lat, lat2, 8 * SumEpsilon(shape.nope)));

        const Owned expected = Decode(*reference_, cache, lat, q, act);
        EXPECT_TRUE(
            Near(expected, Decode(*device_, cache, lat, q, act), 64 * SumEpsilon(shape.kv_lora)));

        Owned out(act, {cache.rows, shape.heads, shape.v}), out2 = out;
        EXPECT_OK(MlaExpandV(*reference_, {expected.view(), kv_b.view(), out.view()}));
        EXPECT_OK(MlaExpandV(*device_, {expected.view(), kv_b.view(), out2.view()}));
        EXPECT_TRUE(Near(out, out2, 16 * SumEpsilon(shape.kv_lora)));
      }
    }
  }
}

// Some of the heads, with their rows of kv_b, give those heads of the whole: what the ranks of a
// tensor-parallel group compute.
TEST_P(AttentionTest, HeadsAreIndependentOfTheirNumber) {
  CaseShare share(GetParam(), 5);
  for (const Shape& shape : {kShapes[1], kShapes[2]}) {
    if (!share.Mine()) continue;
    SCOPED_TRACE(Describe(shape));
    const Cache cache = MakeCache(rng_, shape, {3, 70}, {67, 70});
    const OwnedWeight kv_b = KvB(shape, DType::kF8E4M3);
    const Owned q = Q(shape, cache.rows, DType::kBF16);
    const Owned all = Prefill(*device_, cache, q, kv_b);
    const int64_t per_head = shape.nope + shape.v, depth = shape.nope + shape.rope;
    for (int64_t head = 0; head < shape.heads; ++head) {
      Owned q_part(DType::kBF16, {cache.rows, 1, depth}),
          out(DType::kBF16, {cache.rows, 1, shape.v});
      Owned expected = out;
      for (int64_t t = 0; t < cache.rows; ++t) {
        std::copy_n(q.view().row<const uint16_t>(t) + head * depth, depth,
                    q_part.view().row<uint16_t>(t));
        std::copy_n(all.view().row<const uint16_t>(t) + head * shape.v, shape.v,
                    expected.view().row<uint16_t>(t));
      }
      EXPECT_OK(
          MlaPrefill(*device_, {.q = q_part.view(),
                                .kv_b = kv_b.view().Rows(head * per_head, (head + 1) * per_head),
                                .pages = cache.pages(),
                                .batch = cache.batch(),
                                .out = out.view(),
                                .softmax_scale = Scale(shape)}));
      EXPECT_EQ(out.bytes(), expected.bytes()) << "head " << head;
    }
  }
}

// The two forms compute the same function.
TEST_P(AttentionTest, AbsorbedFormEqualsExpandedForm) {
  const Shape shape = {6, 64, 32, 64, 128, 64, KvFormat::kF32};
  const Cache cache = MakeCache(rng_, shape, {2, 1}, {5, 290});
  const OwnedWeight kv_b = KvB(shape, DType::kBF16);
  const Owned q = Q(shape, cache.rows, DType::kF32);
  Owned lat(DType::kF32, {cache.rows, shape.heads, shape.kv_lora});
  EXPECT_OK(MlaAbsorbQ(*device_, {.q = q.view(), .kv_b = kv_b.view(), .out = lat.view(), .v = 64}));
  const Owned o_lat = Decode(*device_, cache, lat, q, DType::kF32);
  Owned out(DType::kF32, {cache.rows, shape.heads, shape.v});
  EXPECT_OK(MlaExpandV(*device_, {o_lat.view(), kv_b.view(), out.view()}));
  EXPECT_TRUE(Near(Prefill(*device_, cache, q, kv_b), out, 256 * SumEpsilon(shape.kv_lora)));
}

// A row alone, with the context that ends at it, has the bits it has in any batch, under any thread
// count.
TEST_P(AttentionTest, PrefillIsRowInvariant) {
  CaseShare share(GetParam(), 9), row_share(GetParam(), 5);
  for (const Shape& shape : {kShapes[1], kShapes[2]}) {
    for (DType act : {DType::kF32, DType::kBF16}) {
      if (!share.Mine()) continue;
      SCOPED_TRACE(Describe(shape));
      const Cache cache = MakeCache(rng_, shape, {33, 40}, {33, 135});
      const OwnedWeight kv_b = KvB(shape, DType::kF8E4M3);
      const Owned q = Q(shape, cache.rows, act);
      const Owned all = Prefill(*device_, cache, q, kv_b);
      const auto single = MakeDevice(GetParam(), 1);
      EXPECT_EQ(Prefill(*single, cache, q, kv_b).bytes(), all.bytes());
      for (int64_t t = 0; t < cache.rows; ++t) {
        if (!row_share.Mine()) continue;
        const int64_t s = t < 33 ? 0 : 1;
        const Cache one = OnlyRow(cache, s, t - 33 * s);
        EXPECT_EQ(Prefill(*single, one, Rows(q, t, t + 1), kv_b).bytes(), RowBytes(all, t))
            << "row " << t;
      }
    }
  }
}

TEST_P(AttentionTest, DecodeIsRowInvariant) {
  CaseShare share(GetParam(), 9);
  const bool gpu = GetParam().backend == BackendKind::kCuda;  // takes no notice of threads
  const std::vector<int> thread_counts = gpu ? std::vector{1} : std::vector{1, 2, 5};
  for (const Shape& shape : {kShapes[1], kShapes[2]}) {
    for (DType act : {DType::kF32, DType::kBF16}) {
      if (!share.Mine()) continue;
      SCOPED_TRACE(Describe(shape));
      const std::vector<int32_t> queries = {1, 2, 20, 1, 3};
      const Cache cache = MakeCache(rng_, shape, queries, {1, 64, 70, 530, 258});
      const OwnedWeight kv_b = KvB(shape, DType::kF8E4M3);
      const Owned q = Q(shape, cache.rows, act);
      const auto steps = [&](Device& device, const Cache& part, const Owned& part_q) {
        Owned lat(DType::kF32, {part.rows, shape.heads, shape.kv_lora});
        EXPECT_OK(MlaAbsorbQ(device, {.q = part_q.view(),
                                      .kv_b = kv_b.view(),
                                      .out = lat.view(),
                                      .v = static_cast<int>(shape.v)}));
        const Owned o_lat = Decode(device, part, lat, part_q, act);
        Owned out(act, {part.rows, shape.heads, shape.v});
        EXPECT_OK(MlaExpandV(device, {o_lat.view(), kv_b.view(), out.view()}));
        return out;
      };
      const Owned all = steps(*device_, cache, q);
      for (int threads : thread_counts) {
        const auto device = MakeDevice(GetParam(), threads);
        EXPECT_EQ(steps(*device, cache, q).bytes(), all.bytes());
        int64_t t = 0;
        for (size_t s = 0; s < queries.size(); ++s) {
          for (int32_t r = 0; r < queries[s]; ++r, ++t) {
            const Cache one = OnlyRow(cache, static_cast<int64_t>(s), r);
            EXPECT_EQ(steps(*device, one, Rows(q, t, t + 1)).bytes(), RowBytes(all, t))
                << "row " << t;
          }
        }
      }
    }
  }
}

BATON_INSTANTIATE_KERNEL_TEST(AttentionTest);

}  // namespace
}  // namespace baton::kernels
