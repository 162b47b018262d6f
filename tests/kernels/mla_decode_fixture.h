#ifndef BATON_TESTS_KERNELS_MLA_DECODE_FIXTURE_H_
#define BATON_TESTS_KERNELS_MLA_DECODE_FIXTURE_H_

// Base of the suites of attention on latents alone.

#include <vector>

#include "tests/kernels/latent_cache.h"

namespace baton::kernels {

struct Types {
  DType lat, act;
};

class MlaDecodeFixture : public KernelTest {
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
  // A row, and rows of its heads alone, under one context.
  void ExpectHeadsIndependent(const Shape& shape, int32_t context) {
    const Cache cache = MakeCache(rng_, shape, {1}, {context});
    const Queries queries = MakeQueries(shape, 1, DType::kBF16, DType::kBF16);
    const Owned all = Run(*device_, cache, queries, DType::kF32);
    for (const int64_t head : {int64_t{0}, shape.heads / 2, shape.heads - 1}) {
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
  // Each row alone, with the context that ends at it, has the bits it has in the batch.
  void ExpectRowInvariant(const Shape& shape, DType lat, DType act,
                          const std::vector<int32_t>& rows_of,
                          const std::vector<int32_t>& contexts) {
    const Cache cache = MakeCache(rng_, shape, rows_of, contexts);
    const Queries queries = MakeQueries(shape, cache.rows, lat, act);
    const Owned all = Run(*device_, cache, queries, DType::kF32);
    int64_t t = 0;
    for (size_t s = 0; s < rows_of.size(); ++s) {
      for (int32_t r = 0; r < rows_of[s]; ++r, ++t) {
        const Cache one = OnlyRow(cache, static_cast<int64_t>(s), r);
        const Queries own = {Rows(queries.lat, t, t + 1), Rows(queries.q, t, t + 1)};
        EXPECT_EQ(Run(*device_, one, own, DType::kF32).bytes(), RowBytes(all, t)) << "row " << t;
      }
    }
  }
};

}  // namespace baton::kernels

#endif  // BATON_TESTS_KERNELS_MLA_DECODE_FIXTURE_H_
