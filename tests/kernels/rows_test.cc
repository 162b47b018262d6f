// Embed, RmsNorm, QuantizeFp8 and the number formats.

#include "kernels/numeric.h"
#include "tests/kernels/kernel_test_util.h"

namespace baton::kernels {
namespace {

TEST(NumericTest, Bf16RoundsToNearestEven) {
  EXPECT_EQ(F32ToBf16(1.0f), 0x3F80);
  EXPECT_EQ(F32ToBf16(std::bit_cast<float>(0x3F808000u)), 0x3F80);  // tie, even below
  EXPECT_EQ(F32ToBf16(std::bit_cast<float>(0x3F818000u)), 0x3F82);  // tie, even above
  EXPECT_EQ(F32ToBf16(std::bit_cast<float>(0x3F808001u)), 0x3F81);
  EXPECT_EQ(F32ToBf16(INFINITY), 0x7F80);
  EXPECT_EQ(F32ToBf16(3.4028234e38f), 0x7F80);
  EXPECT_TRUE(std::isnan(Bf16ToF32(F32ToBf16(std::bit_cast<float>(0x7F800001u)))));
}

TEST(NumericTest, EveryFp8CodeSurvivesARoundTrip) {
  for (int code = 0; code < 256; ++code) {
    const float value = F8E4M3ToF32(static_cast<uint8_t>(code));
    EXPECT_EQ(std::isnan(value), (code & 0x7F) == 0x7F);
    EXPECT_EQ(F32ToF8E4M3(value), code);
  }
  EXPECT_EQ(F8E4M3ToF32(0x01), 0x1p-9f);
  EXPECT_EQ(F8E4M3ToF32(0x7E), 448.0f);
  EXPECT_EQ(F8E4M3ToF32(0xB8), -1.0f);
}

// Every float between two neighbouring codes goes to the nearer one, the middle to the even one,
// beyond 448 to 448.
TEST(NumericTest, Fp8RoundsToNearestEvenAndSaturates) {
  for (int code = 0; code < 0x7E; ++code) {
    const float low = F8E4M3ToF32(static_cast<uint8_t>(code));
    const float high = F8E4M3ToF32(static_cast<uint8_t>(code + 1));
    const float middle = (low + high) / 2;
    EXPECT_EQ(F32ToF8E4M3(std::nextafter(middle, 0.0f)), code);
    EXPECT_EQ(F32ToF8E4M3(middle), code % 2 == 0 ? code : code + 1);
    EXPECT_EQ(F32ToF8E4M3(-std::nextafter(middle, 1e9f)), (code + 1) | 0x80);
  }
  EXPECT_EQ(F32ToF8E4M3(1e9f), 0x7E);
  EXPECT_EQ(F32ToF8E4M3(-INFINITY), 0xFE);
}

class RowsTest : public KernelTest {};

TEST_P(RowsTest, EmbedCopiesRows) {
  for (DType dtype : {DType::kBF16, DType::kF32}) {
    for (int64_t hidden : {1, 37, 128}) {
      const Owned table = Random(rng_, dtype, {11, hidden}), ids = Ints({10, 0, 3, 3});
      Owned expected(DType::kF32, {4, hidden}), actual = expected;
      EXPECT_OK(Embed(*reference_, {ids.view(), table.view(), expected.view()}));
      EXPECT_OK(Embed(*device_, {ids.view(), table.view(), actual.view()}));
      EXPECT_EQ(expected.bytes(), actual.bytes());
      EXPECT_EQ(actual.at(hidden), table.at(0));
    }
  }
}

TEST_P(RowsTest, RmsNormMatchesReference) {
  for (int64_t hidden : {1, 15, 64, 391}) {
    for (DType x_type : {DType::kF32, DType::kBF16}) {
      for (DType add_type : {DType::kF32, DType::kBF16}) {
        for (bool with_add : {false, true}) {
          SCOPED_TRACE(std::to_string(hidden) + DTypeName(x_type) + DTypeName(add_type));
          Owned x = Random(rng_, x_type, {5, hidden}, 3.0f), x2 = x;
          const Owned add = Random(rng_, add_type, {5, hidden});
          const Owned weight = Random(rng_, add_type, {hidden});
          Owned expected(DType::kBF16, {5, hidden}), actual = expected;
          RmsNormArgs args{.x = x.view(), .weight = weight.view(), .out = expected.view()};
          if (with_add) args.add = add.view();
          EXPECT_OK(RmsNorm(*reference_, args));
          args.x = x2.view();
          args.out = actual.view();
          EXPECT_OK(RmsNorm(*device_, args));
          EXPECT_TRUE(Near(x, x2, 0x1p-24));
          EXPECT_TRUE(Near(expected, actual, SumEpsilon(hidden)));
          // In place, where the dtypes allow it.
          if (x_type == DType::kBF16 && !with_add) {
            args.out = x2.view();
            EXPECT_OK(RmsNorm(*device_, args));
            EXPECT_EQ(x2.bytes(), actual.bytes());
          }
        }
      }
    }
  }
}

TEST_P(RowsTest, RmsNormOfZerosIsZeroAndOfNanIsNan) {
  Owned x(DType::kF32, {2, 20}), out(DType::kF32, {2, 20});
  x.set(33, NAN);
  Owned weight(DType::kF32, {20});
  for (int i = 0; i < 20; ++i) weight.set(i, 1.0f);
  EXPECT_OK(RmsNorm(*device_, {.x = x.view(), .weight = weight.view(), .out = out.view()}));
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(out.at(i), 0.0f);
    EXPECT_TRUE(std::isnan(out.at(20 + i)));
  }
}

TEST_P(RowsTest, RmsNormIsRowInvariant) {
  const Owned x = Random(rng_, DType::kF32, {33, 2100}),
              weight = Random(rng_, DType::kBF16, {2100});
  const auto run = [&](int threads, int64_t begin, int64_t end) {
    const Owned part = Rows(x, begin, end);
    Owned out(DType::kF32, {end - begin, 2100});
    EXPECT_OK(RmsNorm(*MakeDevice(GetParam(), threads),
                      {.x = part.view(), .weight = weight.view(), .out = out.view()}));
    return out;
  };
  const Owned all = run(2, 0, 33);
  for (int64_t r = 0; r < 33; ++r) EXPECT_EQ(run(1, r, r + 1).bytes(), RowBytes(all, r));
}

// A row alone has the bits that it has in every batch of 2 to 33 rows.
TEST_P(RowsTest, EmbedIsRowInvariant) {
  const Owned table = Random(rng_, DType::kBF16, {50, 137});
  const auto run = [&](int threads, int64_t begin, int64_t end) {
    std::vector<int32_t> rows;
    for (int64_t r = begin; r < end; ++r) rows.push_back(static_cast<int32_t>(r * 7 % 50));
    const Owned ids = Ints(rows);
    Owned out(DType::kF32, {end - begin, 137});
    EXPECT_OK(Embed(*SplittingDevice(threads, GetParam()), {ids.view(), table.view(), out.view()}));
    return out;
  };
  for (int64_t rows = 2; rows <= 33; ++rows) {
    const Owned all = run(2, 0, rows);
    for (int64_t r = 0; r < rows; ++r) ASSERT_EQ(run(1, r, r + 1).bytes(), RowBytes(all, r));
  }
}

TEST_P(RowsTest, QuantizeIsRowInvariant) {
  const Owned x = Random(rng_, DType::kBF16, {33, 260}, 5.0f);
  struct Result {
    Owned codes, scales;
  };
  const auto run = [&](int threads, int64_t begin, int64_t end) {
    const Owned part = Rows(x, begin, end);
    Result out{Owned(DType::kF8E4M3, {end - begin, 260}), Owned(DType::kF32, {end - begin, 3})};
    EXPECT_OK(QuantizeFp8(*SplittingDevice(threads, GetParam()),
                          {part.view(), out.codes.view(), out.scales.view()}));
    return out;
  };
  for (int64_t rows = 2; rows <= 33; ++rows) {
    const Result all = run(2, 0, rows);
    for (int64_t r = 0; r < rows; ++r) {
      const Result one = run(1, r, r + 1);
      ASSERT_EQ(one.codes.bytes(), RowBytes(all.codes, r));
      ASSERT_EQ(one.scales.bytes(), RowBytes(all.scales, r));
    }
  }
}

// By hand: 7 is 448 / 64, so the scale is 1/64 and every value a multiple of it.
TEST_P(RowsTest, QuantizeByHand) {
  const float values[] = {7.0f, -7.0f, 0.0f, 1.0f, 1.0625f, 6.6f, 0x1p-15f, 0x1.8p-15f, -1e-9f};
  const uint8_t codes[] = {0x7E, 0xFE, 0x00, 0x68, 0x68, 0x7D, 0x01, 0x02, 0x80};
  Owned x(DType::kF32, {1, 9}), out(DType::kF8E4M3, {1, 9}), scales(DType::kF32, {1, 1});
  for (int i = 0; i < 9; ++i) x.set(i, values[i]);
  for (Device* device : {device_.get(), reference_.get()}) {
    EXPECT_OK(QuantizeFp8(*device, {x.view(), out.view(), scales.view()}));
    EXPECT_EQ(scales.at(0), 1.0f / 64);
    for (int i = 0; i < 9; ++i) EXPECT_EQ(out.as<uint8_t>()[i], codes[i]) << values[i];
  }
}

TEST_P(RowsTest, QuantizeMatchesReferenceExactly) {
  for (int64_t k : {1, 128, 300}) {
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      Owned x = Random(rng_, dtype, {7, k}, 10.0f);
      for (int64_t i = 0; i < k; ++i) x.set(2 * k + i, 0.0f);
      x.set(4 * k, NAN);
      x.set(5 * k, -INFINITY);
      Owned codes(DType::kF8E4M3, {7, k}), codes2 = codes;
      Owned scales(DType::kF32, {7, (k + 127) / 128}), scales2 = scales;
      EXPECT_OK(QuantizeFp8(*reference_, {x.view(), codes.view(), scales.view()}));
      EXPECT_OK(QuantizeFp8(*device_, {x.view(), codes2.view(), scales2.view()}));
      EXPECT_EQ(codes.bytes(), codes2.bytes());
      EXPECT_EQ(scales.bytes(), scales2.bytes());
      const int64_t groups = scales.shape()[1];
      EXPECT_EQ(scales.at(2 * groups), 1.0f);
      EXPECT_TRUE(std::isnan(scales.at(4 * groups)));
      EXPECT_TRUE(std::isnan(scales.at(5 * groups)));
      // What comes back is within half a step of the largest code's spacing.
      for (int64_t i = 0; i < k; ++i) {
        const float back = codes.at(i) * scales.at(i / 128);
        EXPECT_NEAR(back, x.at(i), scales.at(i / 128) * 16.0f);
      }
    }
  }
}

BATON_INSTANTIATE_KERNEL_TEST(RowsTest);

}  // namespace
}  // namespace baton::kernels
