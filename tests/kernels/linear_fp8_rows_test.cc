// Linear with E4M3 on both sides in whole blocks of 128 k: many numbers of rows, weights whose rows
// end or begin within a block of scales. What a backend that works in blocks of rows, or hands such
// products to a library, may get wrong.

#include "tests/kernels/kernel_test_util.h"

namespace baton::kernels {
namespace {

class LinearFp8RowsTest : public KernelTest {
 protected:
  struct Codes {
    Owned codes, scales;
  };
  Codes RandomCodes(int64_t rows, int64_t k) {
    const Owned x = Random(rng_, DType::kBF16, {rows, k});
    Codes out{Owned(DType::kF8E4M3, {rows, k}), Owned(DType::kF32, {rows, k / 128})};
    EXPECT_OK(QuantizeFp8(*reference_,
                          {.x = x.view(), .out = out.codes.view(), .scales = out.scales.view()}));
    return out;
  }
  // Rows [begin, end) of x through the op.
  Owned Run(const Codes& x, const Weight& w, int64_t begin, int64_t end, DType type = DType::kF32) {
    const Owned codes = Rows(x.codes, begin, end), scales = Rows(x.scales, begin, end);
    Owned out(type, {end - begin, w.w.dim(0)});
    EXPECT_OK(Linear(*device_,
                     {.x = codes.view(), .x_scales = scales.view(), .w = w, .out = out.view()}));
    return out;
  }
  // As in LinearFp8Test: tensor cores of GPUs add products of E4M3 with fewer bits than F32 has.
  double Epsilon(int64_t k) const {
    const bool is_gpu = GetParam().backend == BackendKind::kCuda && GetParam().seed == 0;
    return is_gpu ? 0x1p-10 : 32 * SumEpsilon(k);
  }
};

// Numbers of blocks of k that are multiples of four, as scales of weights may have to be, and not;
// columns in multiples of 16 and not, in one block of scales and several.
TEST_P(LinearFp8RowsTest, MatchesReference) {
  struct Case {
    int64_t rows, n, k;
    Epilogue epilogue = Epilogue::kNone;
    DType type = DType::kF32;
  };
  CaseShare share(GetParam(), 9);
  for (const Case& c : {Case{1, 48, 128},
                        {15, 144, 256, Epilogue::kAdd},
                        {16, 272, 512},
                        {17, 40, 640, Epilogue::kAdd},
                        {33, 150, 128, Epilogue::kAdd},
                        {66, 16, 384, Epilogue::kNone, DType::kBF16},
                        {127, 130, 128, Epilogue::kNone, DType::kBF16},
                        {128, 32, 256, Epilogue::kAdd},
                        {200, 5, 128}}) {
    if (!share.Mine()) continue;
    SCOPED_TRACE(std::to_string(c.rows) + "x" + std::to_string(c.n) + "x" + std::to_string(c.k));
    const Codes x = RandomCodes(c.rows, c.k);
    const OwnedWeight w = RandomWeight(rng_, DType::kF8E4M3, c.n, c.k);
    Owned expected = Random(rng_, c.type, {c.rows, c.n}), actual = expected;
    LinearArgs args{.x = x.codes.view(),
                    .x_scales = x.scales.view(),
                    .w = w.view(),
                    .out = expected.view(),
                    .epilogue = c.epilogue};
    EXPECT_OK(Linear(*reference_, args));
    args.out = actual.view();
    EXPECT_OK(Linear(*device_, args));
    EXPECT_TRUE(Near(expected, actual, Epsilon(c.k)));
  }
}

TEST_P(LinearFp8RowsTest, RowsAreInvariant) {
  CaseShare share(GetParam(), 3);
  for (const DType type : {DType::kF32, DType::kBF16}) {
    if (!share.Mine()) continue;
    const int64_t rows = 150;
    const Codes x = RandomCodes(rows, 384);
    const OwnedWeight w = RandomWeight(rng_, DType::kF8E4M3, 40, 384);
    const Owned all = Run(x, w.view(), 0, rows, type);
    for (const auto& [begin, end] :
         {std::pair<int64_t, int64_t>{0, 1}, {rows - 1, rows}, {7, 135}, {50, 67}, {3, 36}}) {
      EXPECT_EQ(Run(x, w.view(), begin, end, type).bytes(), Rows(all, begin, end).bytes())
          << begin << ".." << end;
    }
  }
}

// A rank's heads are rows of a matrix, which begin and end anywhere in a block of scales.
TEST_P(LinearFp8RowsTest, SlicesOfAMatrixGiveTheSameBits) {
  CaseShare share(GetParam(), 5);
  const int64_t rows = 20, n = 400, k = 256;
  const Codes x = RandomCodes(rows, k);
  const OwnedWeight w = RandomWeight(rng_, DType::kF8E4M3, n, k);
  const Owned all = Run(x, w.view(), 0, rows);
  for (const std::vector<int64_t>& ends :
       {std::vector<int64_t>{0, 128, 400}, {0, 48, 96, 192, 336, 400}, {0, 1, 90, 300, 400}}) {
    if (!share.Mine()) continue;
    Owned parts(DType::kF32, {rows, n});
    for (size_t i = 0; i + 1 < ends.size(); ++i) {
      EXPECT_OK(Linear(*device_, {.x = x.codes.view(),
                                  .x_scales = x.scales.view(),
                                  .w = w.view().Rows(ends[i], ends[i + 1]),
                                  .out = parts.view().Slice(1, ends[i], ends[i + 1])}));
    }
    EXPECT_EQ(parts.bytes(), all.bytes()) << ends[1];
  }
}

// Scales whose rows lie apart, and codes that are no product of rounding: zero scales, NaN.
TEST_P(LinearFp8RowsTest, ScalesMayLieApartAndBeAnything) {
  const int64_t rows = 5, k = 256;
  Codes x = RandomCodes(rows, k);
  x.scales.set(2 * 2, 0.0f);
  x.scales.set(3 * 2 + 1, NAN);
  Owned spread(DType::kF32, {rows, 7});
  for (int64_t i = 0; i < rows * 2; ++i) spread.set(i / 2 * 7 + i % 2, x.scales.at(i));
  const OwnedWeight w = RandomWeight(rng_, DType::kF8E4M3, 32, k);
  const Owned close = Run(x, w.view(), 0, rows);
  Owned apart(DType::kF32, {rows, 32});
  EXPECT_OK(Linear(*device_, {.x = x.codes.view(),
                              .x_scales = spread.view().Slice(1, 0, 2),
                              .w = w.view(),
                              .out = apart.view()}));
  EXPECT_EQ(apart.bytes(), close.bytes());
  for (int64_t i = 0; i < apart.elements(); ++i) {
    EXPECT_EQ(std::isnan(apart.at(i)), i / 32 == 3) << i;
  }
}

BATON_INSTANTIATE_KERNEL_TEST(LinearFp8RowsTest);

}  // namespace
}  // namespace baton::kernels
