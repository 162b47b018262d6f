// Paging and both forms of attention, against the reference and against each other.

#include "kernels/page_entry.h"
#include "tests/kernels/kernel_test_util.h"

namespace baton::kernels {
namespace {

struct Shape {
  int64_t heads, nope, rope, v;
  int kv_lora;
  int page_tokens;
  KvFormat format;
};

// Pages of one layer with some sequences in them, their pages scattered.
struct Cache {
  Owned data, table, query_start, context_len;
  Shape shape;
  int64_t rows = 0;

  KvPages pages() const {
    return {.data = data.view(),
            .format = shape.format,
            .page_tokens = shape.page_tokens,
            .kv_lora = shape.kv_lora,
            .rope = static_cast<int>(shape.rope)};
  }
  PagedBatch batch() const { return {query_start.view(), context_len.view(), table.view()}; }
};

// `queries[s]` rows at the end of a context of `lengths[s]` tokens; every entry holds random
// values, slots that no sequence uses hold NaN codes.
Cache MakeCache(Rng& rng, const Shape& shape, const std::vector<int32_t>& queries,
                const std::vector<int32_t>& lengths) {
  Cache cache;
  cache.shape = shape;
  std::vector<int32_t> start = {0};
  int64_t max_pages = 0, total = 0;
  for (size_t s = 0; s < queries.size(); ++s) {
    start.push_back(start.back() + queries[s]);
    const int64_t used = (lengths[s] + shape.page_tokens - 1) / shape.page_tokens;
    max_pages = std::max(max_pages, used);
    total += used;
  }
  cache.rows = start.back();
  const int64_t entry = KvEntryBytes(shape.format, shape.kv_lora, shape.rope);
  cache.data = Owned(DType::kU8, {total + 2, shape.page_tokens * entry + 64});
  std::memset(cache.data.as<uint8_t>(), 0xFF, cache.data.bytes().size());
  cache.query_start = Ints(start);
  cache.context_len = Ints(lengths);
  cache.table = Owned(DType::kI32, {static_cast<int64_t>(queries.size()), max_pages});
  std::memset(cache.table.as<uint8_t>(), 0xFF, cache.table.bytes().size());
  int32_t next = static_cast<int32_t>(total + 1);  // pages are handed out backwards
  for (size_t s = 0; s < queries.size(); ++s) {
    int32_t* table = cache.table.as<int32_t>() + static_cast<int64_t>(s) * max_pages;
    for (int64_t i = 0; i * shape.page_tokens < lengths[s]; ++i) table[i] = next--;
    for (int64_t i = 0; i < lengths[s]; ++i) {
      const Owned latent = Random(rng, DType::kF32, {shape.kv_lora});
      const Owned rotary = Random(rng, DType::kF32, {shape.rope});
      WriteEntry(cache.pages(), latent.as<float>(), rotary.as<float>(),
                 EntryAt(cache.pages(), table[i / shape.page_tokens], i % shape.page_tokens));
    }
  }
  return cache;
}

// Row r of sequence s alone: the context ends with it.
Cache OnlyRow(const Cache& cache, int64_t s, int64_t r) {
  Cache one = cache;
  const int32_t* start = cache.query_start.as<int32_t>() + s;
  const int32_t length =
      cache.context_len.as<int32_t>()[s] - (start[1] - start[0]) + static_cast<int32_t>(r) + 1;
  one.query_start = Ints({0, 1});
  one.context_len = Ints({length});
  one.table = Rows(cache.table, s, s + 1);
  one.rows = 1;
  return one;
}

const Shape kShapes[] = {
    {3, 16, 8, 16, 32, 16, KvFormat::kF32},      {6, 64, 32, 64, 128, 64, KvFormat::kBF16},
    {5, 24, 10, 20, 160, 32, KvFormat::kFP8},    {2, 128, 64, 128, 512, 64, KvFormat::kFP8},
    {1, 192, 64, 256, 512, 64, KvFormat::kBF16},
};

std::string Describe(const Shape& s) {
  return std::to_string(s.heads) + " heads " + std::to_string(s.nope) + "/" +
         std::to_string(s.rope) + "/" + std::to_string(s.v) + "/" + std::to_string(s.kv_lora) +
         " " + KvFormatName(s.format);
}

float Scale(const Shape& shape) {
  return 1.0f / std::sqrt(static_cast<float>(shape.nope + shape.rope));
}

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

TEST_P(AttentionTest, RopeAndPageMatchesReference) {
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
TEST_P(AttentionTest, RopeAndPageIsRowInvariant) {
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

TEST_P(AttentionTest, PrefillMatchesReference) {
  for (const Shape& shape : kShapes) {
    for (DType act : {DType::kF32, DType::kBF16}) {
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
  for (const Shape& shape : kShapes) {
    for (DType act : {DType::kF32, DType::kBF16}) {
      for (DType weight : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
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
  for (const Shape& shape : {kShapes[1], kShapes[2]}) {
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
  for (const Shape& shape : {kShapes[1], kShapes[2]}) {
    for (DType act : {DType::kF32, DType::kBF16}) {
      SCOPED_TRACE(Describe(shape));
      const Cache cache = MakeCache(rng_, shape, {33, 40}, {33, 135});
      const OwnedWeight kv_b = KvB(shape, DType::kF8E4M3);
      const Owned q = Q(shape, cache.rows, act);
      const Owned all = Prefill(*device_, cache, q, kv_b);
      const auto single = MakeDevice(GetParam(), 1);
      EXPECT_EQ(Prefill(*single, cache, q, kv_b).bytes(), all.bytes());
      for (int64_t t = 0; t < cache.rows; ++t) {
        const int64_t s = t < 33 ? 0 : 1;
        const Cache one = OnlyRow(cache, s, t - 33 * s);
        EXPECT_EQ(Prefill(*single, one, Rows(q, t, t + 1), kv_b).bytes(), RowBytes(all, t))
            << "row " << t;
      }
    }
  }
}

TEST_P(AttentionTest, DecodeIsRowInvariant) {
  for (const Shape& shape : {kShapes[1], kShapes[2]}) {
    for (DType act : {DType::kF32, DType::kBF16}) {
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
      for (int threads : {1, 2, 5}) {
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

TEST_P(AttentionTest, PagesTravelAndCorruptionIsRefused) {
  const Shape& shape = kShapes[2];
  const Cache from = MakeCache(rng_, shape, {1}, {100});
  Cache to = MakeCache(rng_, shape, {1}, {100});
  const std::vector<PageRange> source = {{5, 0, 32}, {2, 4, 9}, {3, 31, 1}, {3, 0, 0}};
  const std::vector<PageRange> target = {{1, 0, 32}, {4, 4, 9}, {2, 31, 1}, {3, 0, 0}};
  const int64_t entry = KvEntryBytes(shape.format, shape.kv_lora, shape.rope);
  Owned message(DType::kU8, {42 * entry});
  uint64_t checksum = 0;
  PagesPackArgs pack{.pages = from.pages(), .ranges = source, .message = message.view(), .seed = 7};
  pack.checksum = &checksum;
  EXPECT_OK(PagesPack(*device_, pack));
  PagesUnpackArgs unpack{
      .pages = to.pages(), .ranges = target, .message = message.view(), .seed = 7};
  unpack.checksum = checksum;
  const TestBytes before = to.data.bytes();
  message.as<uint8_t>()[41 * entry] ^= 1;
  EXPECT_EQ(PagesUnpack(*device_, unpack).code(), absl::StatusCode::kDataLoss);
  message.as<uint8_t>()[41 * entry] ^= 1;
  unpack.seed = 8;  // a message of another header
  EXPECT_EQ(PagesUnpack(*device_, unpack).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(to.data.bytes(), before);
  unpack.seed = 7;
  EXPECT_OK(PagesUnpack(*device_, unpack));
  for (size_t i = 0; i < source.size(); ++i) {
    for (int32_t j = 0; j < source[i].count; ++j) {
      EXPECT_EQ(std::memcmp(EntryAt(from.pages(), source[i].page, source[i].first + j),
                            EntryAt(to.pages(), target[i].page, target[i].first + j),
                            static_cast<size_t>(entry)),
                0);
    }
  }
  // Tokens beside the ranges stay.
  const int64_t beside = EntryAt(to.pages(), 4, 13) - to.data.as<uint8_t>();
  EXPECT_EQ(std::memcmp(to.data.bytes().data() + beside, before.data() + beside,
                        static_cast<size_t>(entry)),
            0);
}

TEST(KvFormatTest, EntrySizes) {
  EXPECT_EQ(KvEntryBytes(KvFormat::kBF16, 512, 64), 1152);
  EXPECT_EQ(KvEntryBytes(KvFormat::kFP8, 512, 64), 656);
  EXPECT_EQ(KvEntryBytes(KvFormat::kF32, 128, 32), 640);
}

BATON_INSTANTIATE_KERNEL_TEST(AttentionTest);

}  // namespace
}  // namespace baton::kernels
