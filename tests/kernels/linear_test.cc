// Linear and GroupedLinear against the reference, on every instruction set, and their row
// invariance.

#include "tests/kernels/kernel_test_util.h"

namespace baton::kernels {
namespace {

struct Dims {
  int64_t rows, n, k;
};

std::string Describe(const Dims& dims, DType act, DType weight) {
  return std::to_string(dims.rows) + "x" + std::to_string(dims.n) + "x" + std::to_string(dims.k) +
         " " + DTypeName(act) + " " + DTypeName(weight);
}

class LinearTest : public KernelTest {};

TEST_P(LinearTest, MatchesReference) {
  CaseShare share(GetParam(), 5);
  for (const Dims dims : {Dims{1, 1, 1},
                          {1, 3, 64},
                          {2, 5, 17},
                          {3, 33, 128},
                          {5, 130, 200},
                          {1, 257, 384},
                          {7, 16, 100},
                          {33, 48, 320},
                          {140, 20, 72}}) {
    for (DType act : {DType::kF32, DType::kBF16}) {
      for (DType weight : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
        if (!share.Mine()) continue;
        SCOPED_TRACE(Describe(dims, act, weight));
        const Owned x = Random(rng_, act, {dims.rows, dims.k});
        const OwnedWeight w = RandomWeight(rng_, weight, dims.n, dims.k);
        Owned expected(DType::kF32, {dims.rows, dims.n}), actual = expected;
        EXPECT_OK(Linear(*reference_, {.x = x.view(), .w = w.view(), .out = expected.view()}));
        EXPECT_OK(Linear(*device_, {.x = x.view(), .w = w.view(), .out = actual.view()}));
        EXPECT_TRUE(Near(expected, actual, 8 * SumEpsilon(dims.k)));
      }
    }
  }
}

TEST_P(LinearTest, Epilogues) {
  const Dims dims{6, 37, 136};
  for (DType act : {DType::kF32, DType::kBF16}) {
    for (DType weight : {DType::kBF16, DType::kF8E4M3}) {
      SCOPED_TRACE(Describe(dims, act, weight));
      const Owned x = Random(rng_, act, {dims.rows, dims.k});
      const OwnedWeight w = RandomWeight(rng_, weight, dims.n, dims.k);
      const OwnedWeight w2 = RandomWeight(rng_, weight, dims.n, dims.k);
      Owned expected(act, {dims.rows, dims.n}), actual = expected;
      LinearArgs args{
          .x = x.view(), .w = w.view(), .w2 = w2.view(), .epilogue = Epilogue::kSiluMul};
      args.out = expected.view();
      EXPECT_OK(Linear(*reference_, args));
      args.out = actual.view();
      EXPECT_OK(Linear(*device_, args));
      EXPECT_TRUE(Near(expected, actual, 32 * SumEpsilon(dims.k)));

      expected = Random(rng_, DType::kF32, {dims.rows, dims.n});
      actual = expected;
      args.w2 = {};
      args.epilogue = Epilogue::kAdd;
      args.out = expected.view();
      EXPECT_OK(Linear(*reference_, args));
      args.out = actual.view();
      EXPECT_OK(Linear(*device_, args));
      EXPECT_TRUE(Near(expected, actual, 16 * SumEpsilon(dims.k)));
    }
  }
}

// One weight row holds all codes, x picks one: the product is the code's value, exactly.
TEST_P(LinearTest, WidensEveryFp8CodeExactly) {
  Owned w(DType::kF8E4M3, {1, 256}), scale(DType::kF32, {1, 2});
  for (int code = 0; code < 256; ++code) w.as<uint8_t>()[code] = static_cast<uint8_t>(code);
  scale.set(0, 1.0f);
  scale.set(1, 1.0f);
  // NaN codes would swallow every sum they take part in; they get their own check below.
  w.as<uint8_t>()[0x7F] = 0;
  w.as<uint8_t>()[0xFF] = 0;
  CaseShare share(GetParam(), 9);
  for (int64_t rows :
       {1, 8}) {  // below and above the number from which weights are widened beforehand
    for (DType act : {DType::kF32, DType::kBF16}) {
      for (int code = 0; code < 256; ++code) {
        if (!share.Mine()) continue;
        Owned x(act, {rows, 256}), out(DType::kF32, {rows, 1});
        for (int64_t r = 0; r < rows; ++r) x.set(r * 256 + code, 1.0f);
        EXPECT_OK(Linear(
            *device_,
            {.x = x.view(), .w = {.w = w.view(), .scales = scale.view()}, .out = out.view()}));
        for (int64_t r = 0; r < rows; ++r) {
          EXPECT_EQ(out.at(r), F8E4M3ToF32(w.as<uint8_t>()[code])) << "code " << code;
        }
      }
    }
  }
}

TEST_P(LinearTest, NanCodesAndInfinitiesReachTheirOutputsOnly) {
  for (DType act : {DType::kF32, DType::kBF16}) {
    Owned x = Random(rng_, act, {6, 130});
    OwnedWeight w = RandomWeight(rng_, DType::kF8E4M3, 9, 130);
    w.w.as<uint8_t>()[2 * 130 + 129] = 0x7F;
    w.w.as<uint8_t>()[3 * 130 + 5] = 0xFF;
    x.set(4 * 130 + 7, INFINITY);
    Owned expected(DType::kF32, {6, 9}), actual = expected;
    EXPECT_OK(Linear(*reference_, {.x = x.view(), .w = w.view(), .out = expected.view()}));
    EXPECT_OK(Linear(*device_, {.x = x.view(), .w = w.view(), .out = actual.view()}));
    EXPECT_TRUE(std::isnan(expected.at(2)) && std::isfinite(expected.at(1)));
    EXPECT_TRUE(Near(expected, actual, 8 * SumEpsilon(130)));
  }
}

TEST_P(LinearTest, ReadsStridedRowsInPlace) {
  const Owned wide = Random(rng_, DType::kBF16, {5, 300});
  const OwnedWeight w = RandomWeight(rng_, DType::kBF16, 24, 128);
  Owned expected(DType::kBF16, {5, 40}), actual = expected;
  const auto args = [&](const Owned& out) {
    return LinearArgs{
        .x = wide.view().Slice(1, 100, 228), .w = w.view(), .out = out.view().Slice(1, 8, 32)};
  };
  EXPECT_OK(Linear(*reference_, args(expected)));
  EXPECT_OK(Linear(*device_, args(actual)));
  EXPECT_TRUE(Near(expected, actual, 8 * SumEpsilon(128)));
}

// A slice of a matrix, wherever in a block it begins and ends, gives those outputs of the whole.
TEST_P(LinearTest, SlicesOfAMatrixGiveTheSameBits) {
  CaseShare share(GetParam(), 5);
  for (DType weight : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    if (!share.Mine()) continue;
    const Dims dims{6, 390, 200};
    SCOPED_TRACE(Describe(dims, DType::kBF16, weight));
    const Owned x = Random(rng_, DType::kBF16, {dims.rows, dims.k});
    const OwnedWeight w = RandomWeight(rng_, weight, dims.n, dims.k);
    Owned all(DType::kF32, {dims.rows, dims.n});
    EXPECT_OK(Linear(*device_, {.x = x.view(), .w = w.view(), .out = all.view()}));
    Owned parts(DType::kF32, {dims.rows, dims.n}), nested = parts;
    const int64_t ends[] = {0, 1, 96, 192, 288, 300, 384, 390};
    for (size_t i = 0; i + 1 < std::size(ends); ++i) {
      const int64_t begin = ends[i], end = ends[i + 1];
      EXPECT_OK(Linear(*device_, {.x = x.view(),
                                  .w = w.view().Rows(begin, end),
                                  .out = parts.view().Slice(1, begin, end)}));
      // A slice of a slice.
      EXPECT_OK(Linear(
          *device_, {.x = x.view(),
                     .w = w.view().Rows(begin / 2, dims.n).Rows(begin - begin / 2, end - begin / 2),
                     .out = nested.view().Slice(1, begin, end)}));
    }
    EXPECT_EQ(parts.bytes(), all.bytes());
    EXPECT_EQ(nested.bytes(), all.bytes());
    Owned expected(DType::kF32, {dims.rows, 97});
    EXPECT_OK(
        Linear(*reference_, {.x = x.view(), .w = w.view().Rows(100, 197), .out = expected.view()}));
    Owned actual(DType::kF32, {dims.rows, 97});
    EXPECT_OK(
        Linear(*device_, {.x = x.view(), .w = w.view().Rows(100, 197), .out = actual.view()}));
    EXPECT_TRUE(Near(expected, actual, 8 * SumEpsilon(dims.k)));
  }
}

TEST_P(LinearTest, RowInvariant) {
  CaseShare share(GetParam(), 9);
  for (DType act : {DType::kF32, DType::kBF16}) {
    for (DType weight : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
      if (!share.Mine()) continue;
      // The emulation's race check costs sevenfold; there the product is smaller.
      const Dims dims = GetParam().check_races ? Dims{18, 35, 136} : Dims{33, 131, 328};
      SCOPED_TRACE(Describe(dims, act, weight));
      const Owned x = Random(rng_, act, {dims.rows, dims.k});
      const OwnedWeight w = RandomWeight(rng_, weight, dims.n, dims.k);
      const OwnedWeight w2 = RandomWeight(rng_, weight, dims.n, dims.k);
      const auto run = [&](int threads, int64_t begin, int64_t end) {
        const Owned part = Rows(x, begin, end);
        Owned out(act, {end - begin, dims.n});
        EXPECT_OK(Linear(*MakeDevice(GetParam(), threads), {.x = part.view(),
                                                            .w = w.view(),
                                                            .w2 = w2.view(),
                                                            .out = out.view(),
                                                            .epilogue = Epilogue::kSiluMul}));
        return out;
      };
      const Owned all = run(1, 0, dims.rows);
      EXPECT_EQ(run(2, 0, dims.rows).bytes(), all.bytes());
      for (int64_t r = 0; r < dims.rows; ++r) {
        EXPECT_EQ(run(1, r, r + 1).bytes(), RowBytes(all, r)) << "row " << r;
      }
      for (int64_t batch = 2; batch < dims.rows; ++batch) {
        const Owned part = run(2, dims.rows - batch, dims.rows);
        EXPECT_EQ(RowBytes(part, 1), RowBytes(all, dims.rows - batch + 1)) << "batch " << batch;
      }
    }
  }
}

// Backends choose their tiles by the number of rows; no bit may show which.
TEST_P(LinearTest, LargeBatchesGiveTheSameBits) {
  CaseShare share(GetParam(), 3);
  for (DType act : {DType::kF32, DType::kBF16}) {
    for (DType weight : {DType::kBF16, DType::kF8E4M3}) {
      if (!share.Mine()) continue;
      const Dims dims{130, 37, 200};
      SCOPED_TRACE(Describe(dims, act, weight));
      const Owned x = Random(rng_, act, {dims.rows, dims.k});
      const OwnedWeight w = RandomWeight(rng_, weight, dims.n, dims.k);
      const auto run = [&](int64_t begin, int64_t end) {
        const Owned part = Rows(x, begin, end);
        Owned out(DType::kF32, {end - begin, dims.n});
        EXPECT_OK(Linear(*device_, {.x = part.view(), .w = w.view(), .out = out.view()}));
        return out;
      };
      const Owned all = run(0, dims.rows);
      for (int64_t rows : {1, 16, 17, 64, 65}) {
        const Owned part = run(dims.rows - rows, dims.rows);
        EXPECT_EQ(RowBytes(part, rows - 1), RowBytes(all, dims.rows - 1)) << rows << " rows";
        EXPECT_EQ(RowBytes(part, 0), RowBytes(all, dims.rows - rows)) << rows << " rows";
      }
    }
  }
}

class GroupedLinearTest : public KernelTest {
 protected:
  // Experts 1 and 4 of 5 get no rows.
  const std::vector<int32_t> offsets_ = {0, 1, 1, 8, 17, 17};
};

TEST_P(GroupedLinearTest, MatchesReferenceAndLeavesRowsBehindTheLastOffset) {
  const int64_t tokens = 9, rows = 19, n = 37, k = 136;
  std::vector<int32_t> index(rows, -1);
  for (int i = 0; i < 17; ++i)
    index[static_cast<size_t>(i)] = static_cast<int32_t>(rng_.Below(tokens));
  const Owned row_index = Ints(index), offsets = Ints(offsets_);
  for (DType act : {DType::kF32, DType::kBF16}) {
    for (DType weight : {DType::kBF16, DType::kF8E4M3}) {
      const Owned x = Random(rng_, act, {tokens, k});
      const OwnedWeights w = RandomWeights(rng_, weight, 5, n, k);
      const OwnedWeights w2 = RandomWeights(rng_, weight, 5, n, k);
      Owned expected = Random(rng_, act, {rows, n}), actual = expected;
      const Owned before = expected;
      GroupedLinearArgs args{
          .x = x.view(), .row_index = row_index.view(), .offsets = offsets.view()};
      args.w = w.views;
      args.w2 = w2.views;
      args.epilogue = Epilogue::kSiluMul;
      args.out = expected.view();
      EXPECT_OK(GroupedLinear(*reference_, args));
      args.out = actual.view();
      EXPECT_OK(GroupedLinear(*device_, args));
      EXPECT_TRUE(Near(expected, actual, 32 * SumEpsilon(k)));
      EXPECT_EQ(RowBytes(actual, 17), RowBytes(before, 17));

      // The same row through the dense op has the same bits.
      Owned single(act, {1, n});
      const Owned x0 = Rows(x, index[3], index[3] + 1);
      EXPECT_OK(Linear(*device_, {.x = x0.view(),
                                  .w = w.views[2],
                                  .w2 = w2.views[2],
                                  .out = single.view(),
                                  .epilogue = Epilogue::kSiluMul}));
      EXPECT_EQ(single.bytes(), RowBytes(actual, 3));
    }
  }
}

TEST_P(GroupedLinearTest, NoRowsAtAll) {
  const Owned x = Random(rng_, DType::kBF16, {3, 64}), offsets = Ints({0, 0});
  const OwnedWeight owned = RandomWeight(rng_, DType::kF8E4M3, 8, 64);
  const Weight w = owned.view();
  Owned out = Random(rng_, DType::kF32, {2, 8});
  const Owned before = out;
  GroupedLinearArgs args{.x = x.view(), .offsets = offsets.view(), .out = out.view()};
  args.w = absl::MakeConstSpan(&w, 1);
  EXPECT_OK(GroupedLinear(*device_, args));
  EXPECT_EQ(out.bytes(), before.bytes());
}

BATON_INSTANTIATE_KERNEL_TEST(LinearTest);
BATON_INSTANTIATE_KERNEL_TEST(GroupedLinearTest);

}  // namespace
}  // namespace baton::kernels
