// Attention in MHA form on shapes that the emulated GPU computes in seconds.

#include "tests/kernels/latent_cache.h"

namespace baton::kernels {
namespace {

// Of each format; heads of V3 and GLM-4.7-Flash; latents and columns that end within a panel of 64,
// an odd number of values; latents too wide for tiles.
const Shape kPrefillShapes[] = {
    {3, 16, 8, 16, 32, 16, KvFormat::kF32},      {2, 24, 32, 40, 128, 64, KvFormat::kBF16},
    {2, 20, 10, 12, 160, 32, KvFormat::kFP8},    {1, 128, 64, 128, 512, 64, KvFormat::kFP8},
    {1, 192, 64, 256, 256, 64, KvFormat::kBF16}, {2, 72, 2, 67, 96, 16, KvFormat::kBF16},
    {1, 8, 64, 8, 544, 64, KvFormat::kBF16},
};

class MlaPrefillTest : public KernelTest {
 protected:
  OwnedWeight KvB(const Shape& shape, DType dtype) {
    return RandomWeight(rng_, dtype, shape.heads * (shape.nope + shape.v), shape.kv_lora);
  }
  Owned Q(const Shape& shape, int64_t rows, DType act) {
    return Random(rng_, act, {rows, shape.heads, shape.nope + shape.rope}, 0.3f);
  }
  // `context_tokens` as in PagedBatch.
  static Owned Run(Device& device, const Cache& cache, const Owned& q, const OwnedWeight& kv_b,
                   int64_t context_tokens = 0) {
    Owned out(q.dtype(), {cache.rows, cache.shape.heads, cache.shape.v});
    PagedBatch batch = cache.batch();
    batch.context_tokens = context_tokens;
    EXPECT_OK(MlaPrefill(device, {.q = q.view(),
                                  .kv_b = kv_b.view(),
                                  .pages = cache.pages(),
                                  .batch = batch,
                                  .out = out.view(),
                                  .softmax_scale = Scale(cache.shape)}));
    return out;
  }
};

TEST_P(MlaPrefillTest, MatchesReference) {
  CaseShare share(GetParam(), 9);
  for (const Shape& shape : kPrefillShapes) {
    for (const DType act : {DType::kF32, DType::kBF16}) {
      for (const DType weight : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
        if (!share.Mine()) continue;
        SCOPED_TRACE(Describe(shape) + DTypeName(act) + DTypeName(weight));
        const Cache cache = shape.kv_lora > 160
                                ? MakeCache(rng_, shape, {2, 1}, {67, 1})
                                : MakeCache(rng_, shape, {1, 3, 0, 18}, {1, 131, 9, 66});
        const OwnedWeight kv_b = KvB(shape, weight);
        const Owned q = Q(shape, cache.rows, act);
        EXPECT_TRUE(Near(Run(*reference_, cache, q, kv_b), Run(*device_, cache, q, kv_b),
                         64 * SumEpsilon(shape.kv_lora)));
      }
    }
  }
}

// More rows than a tile has, and more sequences than a warp has lanes, some without rows.
TEST_P(MlaPrefillTest, BatchesOfAnyShapeMatchReference) {
  CaseShare share(GetParam(), 5);
  const Shape shape = {1, 16, 8, 16, 32, 16, KvFormat::kBF16};
  std::vector<int32_t> queries = {0, 3, 130}, lengths = {5, 3, 195};
  std::vector<int32_t> many, ones;
  for (int32_t s = 0; s < 37; ++s) {
    many.push_back(s % 5 == 0 ? 0 : s % 5 == 1 ? 2 : 1);
    ones.push_back(s % 7 == 0 ? 70 : 2);
  }
  for (const auto& [rows, tokens] : {std::pair(queries, lengths), std::pair(many, ones)}) {
    if (!share.Mine()) continue;
    const Cache cache = MakeCache(rng_, shape, rows, tokens);
    const OwnedWeight kv_b = KvB(shape, DType::kBF16);
    const Owned q = Q(shape, cache.rows, DType::kBF16);
    EXPECT_TRUE(Near(Run(*reference_, cache, q, kv_b), Run(*device_, cache, q, kv_b),
                     64 * SumEpsilon(shape.kv_lora)));
  }
}

// A row alone, with the context that ends at it, has the bits it has in a batch: what chunks of a
// prompt rely on.
TEST_P(MlaPrefillTest, IsRowInvariant) {
  CaseShare share(GetParam(), 5);
  for (const Shape& shape : {kPrefillShapes[0], kPrefillShapes[1], kPrefillShapes[2]}) {
    for (const DType act : {DType::kF32, DType::kBF16}) {
      if (!share.Mine()) continue;
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

// Working memory decides how many heads or rows are computed at a time, and nothing else.
TEST_P(MlaPrefillTest, WorkingMemoryChangesNoBit) {
  CaseShare share(GetParam(), 3);
  const auto frugal = FrugalDevice(GetParam());
  for (const DType act : {DType::kF32, DType::kBF16}) {
    if (!share.Mine()) continue;
    const Shape shape = {3, 24, 8, 16, 32, 16, KvFormat::kBF16};
    const Cache cache = MakeCache(rng_, shape, {2, 3}, {2, 70});
    const OwnedWeight kv_b = KvB(shape, DType::kBF16);
    const Owned q = Q(shape, cache.rows, act);
    EXPECT_EQ(Run(*device_, cache, q, kv_b).bytes(), Run(*frugal, cache, q, kv_b, 72).bytes());
  }
}

// A key that is no number reaches the rows that see it, and no row before them, even where one
// matrix instruction has both.
TEST_P(MlaPrefillTest, WhatARowDoesNotSeeDoesNotReachIt) {
  CaseShare share(GetParam(), 3);
  const Shape shape = {2, 16, 8, 16, 32, 16, KvFormat::kBF16};
  for (const float latent :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    if (!share.Mine()) continue;
    Cache cache = MakeCache(rng_, shape, {9}, {70});
    const OwnedWeight kv_b = KvB(shape, DType::kBF16);
    const Owned q = Q(shape, cache.rows, DType::kBF16);
    const Owned before = Run(*device_, cache, q, kv_b);
    std::vector<float> values(static_cast<size_t>(shape.kv_lora), 0.5f), rotary(8, 0.0f);
    values[3] = latent;
    const int32_t page = cache.table.as<int32_t>()[66 / shape.page_tokens];
    WriteEntry(cache.pages(), values.data(), rotary.data(),
               EntryAt(cache.pages(), page, 66 % shape.page_tokens));
    const Owned after = Run(*device_, cache, q, kv_b);
    for (int64_t row = 0; row < cache.rows; ++row) {
      const bool sees = 61 + row >= 66;
      if (!sees) {
        EXPECT_EQ(RowBytes(before, row), RowBytes(after, row)) << "row " << row;
      } else if (std::isnan(latent)) {
        for (int64_t i = 0; i < shape.heads * shape.v; ++i) {
          EXPECT_TRUE(std::isnan(after.at(row * shape.heads * shape.v + i))) << "row " << row;
        }
      }
    }
  }
}

BATON_INSTANTIATE_KERNEL_TEST(MlaPrefillTest);

}  // namespace
}  // namespace baton::kernels
