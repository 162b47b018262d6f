// Rotation, the latent's norm and the entry in the pages.

#include "tests/kernels/latent_cache.h"

namespace baton::kernels {
namespace {

class RopeAndPageTest : public KernelTest {
 protected:
  Owned Q(const Shape& shape, int64_t rows, DType act) {
    return Random(rng_, act, {rows, shape.heads, shape.nope + shape.rope}, 0.3f);
  }
};

TEST_P(RopeAndPageTest, MatchesReference) {
  for (const Shape& shape : kShapes) {
    for (DType act : {DType::kF32, DType::kBF16}) {
      SCOPED_TRACE(Describe(shape));
      Cache cache = MakeCache(rng_, shape, {4}, {shape.page_tokens + 3});
      Cache cache2 = cache;
      Owned q = Q(shape, 4, act), q2 = q;
      const Owned kv_a = Random(rng_, act, {4, shape.kv_lora + shape.rope}, 2.0f);
      const Owned norm = Random(rng_, DType::kBF16, {shape.kv_lora});
      const Owned cos = Random(rng_, DType::kF32, {9, shape.rope / 2});
      const Owned sin = Random(rng_, DType::kF32, {9, shape.rope / 2});
      const Owned positions = Ints({0, 8, 3, 3});
      Owned slots(DType::kI64, {4});
      const int64_t slot_values[] = {shape.page_tokens + 1, 0, -1, 2 * shape.page_tokens - 1};
      std::memcpy(slots.as<int64_t>(), slot_values, sizeof(slot_values));
      RopeAndPageArgs args{.q = q.view(),
                           .kv_a = kv_a.view(),
                           .kv_norm = norm.view(),
                           .cos = cos.view(),
                           .sin = sin.view(),
                           .positions = positions.view(),
                           .slots = slots.view(),
                           .pages = cache.pages()};
      EXPECT_OK(RopeAndPage(*reference_, args));
      args.q = q2.view();
      args.pages = cache2.pages();
      EXPECT_OK(RopeAndPage(*device_, args));
      EXPECT_TRUE(Near(q, q2, 0x1p-22));
      for (int64_t slot : slot_values) {
        if (slot < 0) continue;
        Owned latent(DType::kF32, {1, shape.kv_lora}), latent2 = latent;
        Owned rotary(DType::kF32, {1, shape.rope}), rotary2 = rotary;
        ReadEntry(cache.pages(), EntryAtSlot(cache.pages(), slot), latent.as<float>(),
                  rotary.as<float>());
        ReadEntry(cache2.pages(), EntryAtSlot(cache2.pages(), slot), latent2.as<float>(),
                  rotary2.as<float>());
        // One step of the stored format where the roundings of a float and a double sum part.
        const double step = shape.format == KvFormat::kF32    ? 1e-6
                            : shape.format == KvFormat::kBF16 ? 0x1p-6
                                                              : 0.3;
        EXPECT_TRUE(Near(latent, latent2, step));
        EXPECT_TRUE(Near(rotary, rotary2, shape.format == KvFormat::kF32 ? 1e-6 : 0x1p-6));
      }
    }
  }
}

// A row alone writes the bits that it writes in every batch of 2 to 33 rows, and the op in two
// halves writes those of the whole.
TEST_P(RopeAndPageTest, IsRowInvariant) {
  for (const Shape& shape : {kShapes[1], kShapes[2]}) {
    SCOPED_TRACE(Describe(shape));
    constexpr int64_t kRows = 33;
    const Cache cache = MakeCache(rng_, shape, {1}, {3 * shape.page_tokens});
    const Owned q = Q(shape, kRows, DType::kBF16);
    const Owned kv_a = Random(rng_, DType::kBF16, {kRows, shape.kv_lora + shape.rope}, 2.0f);
    const Owned norm = Random(rng_, DType::kBF16, {shape.kv_lora});
    const Owned cos = Random(rng_, DType::kF32, {9, shape.rope / 2});
    const Owned sin = Random(rng_, DType::kF32, {9, shape.rope / 2});
    struct Result {
      Owned q, pages;
    };
    const auto run = [&](int threads, int64_t begin, int64_t end, bool halves) {
      Result result{Rows(q, begin, end), cache.data};
      const Owned part = Rows(kv_a, begin, end);
      Owned positions(DType::kI32, {end - begin}), slots(DType::kI64, {end - begin});
      for (int64_t t = begin; t < end; ++t) {
        positions.as<int32_t>()[t - begin] = static_cast<int32_t>(t * 5 % 9);
        slots.as<int64_t>()[t - begin] = t * 3 % (2 * shape.page_tokens);
      }
      Cache target = cache;
      RopeAndPageArgs args{.q = result.q.view(),
                           .kv_a = part.view(),
                           .kv_norm = norm.view(),
                           .cos = cos.view(),
                           .sin = sin.view(),
                           .positions = positions.view(),
                           .slots = slots.view(),
                           .pages = target.pages()};
      const auto device = SplittingDevice(threads, GetParam());
      if (halves) {
        args.q = {};
        EXPECT_OK(RopeAndPage(*device, args));
        args.q = result.q.view();
        args.kv_a = args.kv_norm = args.slots = {};
      }
      EXPECT_OK(RopeAndPage(*device, args));
      result.pages = target.data;
      return result;
    };
    const int64_t entry = KvEntryBytes(shape.format, shape.kv_lora, shape.rope);
    std::vector<Result> alone;
    for (int64_t t = 0; t < kRows; ++t) alone.push_back(run(1, t, t + 1, false));
    for (int64_t rows = 2; rows <= kRows; ++rows) {
      const Result all = run(2, 0, rows, false);
      for (int64_t t = 0; t < rows; ++t) {
        const Result& one = alone[static_cast<size_t>(t)];
        ASSERT_EQ(one.q.bytes(), RowBytes(all.q, t)) << t << " of " << rows;
        const int64_t slot = t * 3 % (2 * shape.page_tokens);
        const int64_t at =
            slot / shape.page_tokens * all.pages.shape()[1] + slot % shape.page_tokens * entry;
        ASSERT_EQ(std::memcmp(all.pages.as<uint8_t>() + at, one.pages.as<uint8_t>() + at,
                              static_cast<size_t>(entry)),
                  0)
            << t << " of " << rows;
      }
    }
    const Result whole = run(2, 0, kRows, false), halves = run(3, 0, kRows, true);
    EXPECT_EQ(whole.q.bytes(), halves.q.bytes());
    EXPECT_EQ(whole.pages.bytes(), halves.pages.bytes());
  }
}

BATON_INSTANTIATE_KERNEL_TEST(RopeAndPageTest);

}  // namespace
}  // namespace baton::kernels
