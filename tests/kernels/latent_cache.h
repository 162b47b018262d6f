#ifndef BATON_TESTS_KERNELS_LATENT_CACHE_H_
#define BATON_TESTS_KERNELS_LATENT_CACHE_H_

// Latent pages with random contexts in them, and the shapes that tests of attention run on.

#include "kernels/page_entry.h"
#include "tests/kernels/kernel_test_util.h"

namespace baton::kernels {

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
inline Cache MakeCache(Rng& rng, const Shape& shape, const std::vector<int32_t>& queries,
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
inline Cache OnlyRow(const Cache& cache, int64_t s, int64_t r) {
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

inline const Shape kShapes[] = {
    {3, 16, 8, 16, 32, 16, KvFormat::kF32},      {6, 64, 32, 64, 128, 64, KvFormat::kBF16},
    {5, 24, 10, 20, 160, 32, KvFormat::kFP8},    {2, 128, 64, 128, 512, 64, KvFormat::kFP8},
    {1, 192, 64, 256, 512, 64, KvFormat::kBF16},
};

inline std::string Describe(const Shape& s) {
  return std::to_string(s.heads) + " heads " + std::to_string(s.nope) + "/" +
         std::to_string(s.rope) + "/" + std::to_string(s.v) + "/" + std::to_string(s.kv_lora) +
         " " + KvFormatName(s.format);
}

inline float Scale(const Shape& shape) {
  return 1.0f / std::sqrt(static_cast<float>(shape.nope + shape.rope));
}

}  // namespace baton::kernels

#endif  // BATON_TESTS_KERNELS_LATENT_CACHE_H_
