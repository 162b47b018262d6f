// Linear and GroupedLinear with E4M3 on both sides: rows quantized 1x128, weights in blocks of 128.

#include <numeric>

#include "tests/kernels/kernel_test_util.h"

namespace baton::kernels {
namespace {

// Rows as QuantizeFp8 makes them.
struct Codes {
  Owned codes, scales;
};

struct Case {
  int64_t rows, n, k;
  Epilogue epilogue = Epilogue::kNone;
};

class LinearFp8Test : public KernelTest {
 protected:
  Codes Quantize(const Owned& x) {
    const int64_t rows = x.shape()[0], k = x.shape()[1];
    Codes out{Owned(DType::kF8E4M3, {rows, k}), Owned(DType::kF32, {rows, (k + 127) / 128})};
    EXPECT_OK(QuantizeFp8(*reference_,
                          {.x = x.view(), .out = out.codes.view(), .scales = out.scales.view()}));
    return out;
  }
  Codes RandomCodes(int64_t rows, int64_t k) {
    return Quantize(Random(rng_, DType::kBF16, {rows, k}));
  }
  static Codes RowsOf(const Codes& x, int64_t begin, int64_t end) {
    return {Rows(x.codes, begin, end), Rows(x.scales, begin, end)};
  }
  Owned Run(const Codes& x, const Weight& w, const Weight& w2 = {}) {
    Owned out(DType::kF32, {x.codes.shape()[0], w.w.dim(0)});
    EXPECT_OK(Linear(*device_, {.x = x.codes.view(),
                                .x_scales = x.scales.view(),
                                .w = w,
                                .w2 = w2,
                                .out = out.view(),
                                .epilogue = w2.absent() ? Epilogue::kNone : Epilogue::kSiluMul}));
    return out;
  }
  // What the sums of k products may be off by. Tensor cores of GPUs add products of E4M3 with fewer
  // bits than F32 has: some 13 behind the point of the largest.
  double Epsilon(int64_t k) const {
    const bool is_gpu = GetParam().backend == BackendKind::kCuda && GetParam().seed == 0;
    return is_gpu ? 0x1p-10 : 32 * SumEpsilon(k);
  }

  const std::unique_ptr<Device> cpu_ = MakeDevice(BackendKind::kCpu);
};

// Tiles of all sizes and their last ones, rows that are aligned to 16 bytes and not, several
// blocks of k and a last one that is not whole.
TEST_P(LinearFp8Test, MatchesReference) {
  CaseShare share(GetParam(), 7);
  for (const Case& c : {Case{1, 1, 1},
                        {2, 5, 17, Epilogue::kAdd},
                        {3, 33, 128},
                        {1, 257, 384},
                        {5, 130, 200, Epilogue::kSiluMul},
                        {17, 70, 528, Epilogue::kSiluMul},
                        {20, 200, 272, Epilogue::kAdd},
                        {66, 70, 144},
                        {131, 33, 272, Epilogue::kSiluMul},
                        {129, 40, 256, Epilogue::kAdd},
                        {140, 20, 72}}) {
    if (!share.Mine()) continue;
    for (const DType type : {DType::kF32, DType::kBF16}) {
      if (type == DType::kBF16 && (c.epilogue == Epilogue::kAdd || c.rows > 64)) continue;
      SCOPED_TRACE(std::to_string(c.rows) + "x" + std::to_string(c.n) + "x" + std::to_string(c.k) +
                   " to " + DTypeName(type));
      const Codes x = RandomCodes(c.rows, c.k);
      const OwnedWeight w = RandomWeight(rng_, DType::kF8E4M3, c.n, c.k);
      const OwnedWeight w2 = RandomWeight(rng_, DType::kF8E4M3, c.n, c.k);
      Owned expected = Random(rng_, type, {c.rows, c.n}), actual = expected;
      LinearArgs args{.x = x.codes.view(),
                      .x_scales = x.scales.view(),
                      .w = w.view(),
                      .out = expected.view(),
                      .epilogue = c.epilogue};
      if (c.epilogue == Epilogue::kSiluMul) args.w2 = w2.view();
      EXPECT_OK(Linear(*reference_, args));
      args.out = actual.view();
      EXPECT_OK(Linear(*device_, args));
      EXPECT_TRUE(Near(expected, actual, Epsilon(c.k)));
    }
  }
}

// One code of x meets all codes of w: the products are exact, the smallest and largest ones too.
TEST_P(LinearFp8Test, ProductsOfCodesAreExact) {
  OwnedWeight w{Owned(DType::kF8E4M3, {256, 32}), Owned(DType::kF32, {2, 1})};
  w.scales.set(0, 2.0f);
  w.scales.set(1, 2.0f);
  for (int code = 0; code < 256; ++code) {
    if ((code & 0x7F) == 0x7F) continue;  // NaN: below
    w.w.as<uint8_t>()[code * 32 + 5] = static_cast<uint8_t>(code);
  }
  Codes x{Owned(DType::kF8E4M3, {6, 32}), Owned(DType::kF32, {6, 1})};
  const uint8_t codes[] = {0x00, 0x01, 0x87, 0x38, 0x7E, 0xFE};
  for (int64_t r = 0; r < 6; ++r) {
    x.codes.as<uint8_t>()[r * 32 + 5] = codes[r];
    x.scales.set(r, 0.5f);
  }
  const Owned out = Run(x, w.view());
  for (int64_t r = 0; r < 6; ++r) {
    for (int64_t n = 0; n < 256; ++n) {
      EXPECT_EQ(out.at(r * 256 + n), F8E4M3ToF32(codes[r]) * w.w.at(n * 32 + 5))
          << "code " << int{codes[r]} << " by " << n;
    }
  }
}

TEST_P(LinearFp8Test, WhatIsNotFiniteReachesItsOutputsOnly) {
  Owned values = Random(rng_, DType::kF32, {6, 130});
  values.set(4 * 130 + 129, INFINITY);  // the group's scale becomes NaN
  const Codes x = Quantize(values);
  EXPECT_TRUE(std::isnan(x.scales.at(4 * 2 + 1)));
  OwnedWeight w = RandomWeight(rng_, DType::kF8E4M3, 9, 130);
  w.w.as<uint8_t>()[3 * 130 + 5] = 0xFF;
  const Owned out = Run(x, w.view());
  for (int64_t i = 0; i < out.elements(); ++i) {
    EXPECT_EQ(std::isnan(out.at(i)), i / 9 == 4 || i % 9 == 3) << i;
  }
}

// Backends choose their tiles by the number of rows; no bit may show which.
TEST_P(LinearFp8Test, RowInvariant) {
  const int64_t rows = 130, n = GetParam().check_races ? 24 : 40, k = 272;
  CaseShare share(GetParam(), 3);
  for (const bool pair : {false, true}) {
    if (!share.Mine()) continue;
    const Codes x = RandomCodes(rows, k);
    const OwnedWeight w = RandomWeight(rng_, DType::kF8E4M3, n, k);
    const OwnedWeight w2 = RandomWeight(rng_, DType::kF8E4M3, n, k);
    const Weight second = pair ? w2.view() : Weight{};
    const Owned all = Run(x, w.view(), second);
    for (const int64_t r : {int64_t{0}, int64_t{63}, rows - 1}) {
      EXPECT_EQ(Run(RowsOf(x, r, r + 1), w.view(), second).bytes(), RowBytes(all, r)) << r;
    }
    for (const int64_t batch : {16, 17, 64, 65}) {
      const Owned part = Run(RowsOf(x, rows - batch, rows), w.view(), second);
      EXPECT_EQ(RowBytes(part, 0), RowBytes(all, rows - batch)) << batch << " rows";
      EXPECT_EQ(RowBytes(part, batch - 1), RowBytes(all, rows - 1)) << batch << " rows";
    }
  }
}

// A slice of a matrix, wherever in a block of scales it begins, gives those outputs of the whole.
TEST_P(LinearFp8Test, SlicesOfAMatrixGiveTheSameBits) {
  CaseShare share(GetParam(), 3);
  if (!share.Mine()) return;
  const Codes x = RandomCodes(6, 208);
  const OwnedWeight w = RandomWeight(rng_, DType::kF8E4M3, 300, 208);
  const Owned all = Run(x, w.view());
  Owned parts(DType::kF32, {6, 300});
  const int64_t ends[] = {0, 1, 96, 192, 300};
  for (size_t i = 0; i + 1 < std::size(ends); ++i) {
    EXPECT_OK(Linear(*device_, {.x = x.codes.view(),
                                .x_scales = x.scales.view(),
                                .w = w.view().Rows(ends[i], ends[i + 1]),
                                .out = parts.view().Slice(1, ends[i], ends[i + 1])}));
  }
  EXPECT_EQ(parts.bytes(), all.bytes());
}

// Groups without rows, one that ends within a tile, rows taken by index, rows behind the last; rows
// and their scales lie in records, as they come from other ranks.
TEST_P(LinearFp8Test, GroupsMatchReferenceAndTheDenseOp) {
  const std::vector<int32_t> ends = {0, 1, 1, 8, 27, 27};
  const int64_t tokens = 9, rows = 29, n = 70, k = 272, record = 304, scales_at = 288;
  std::vector<int32_t> index(rows, -1);
  for (size_t i = 0; i < 27; ++i) index[i] = static_cast<int32_t>(rng_.Below(tokens));
  const Owned row_index = Ints(index), offsets = Ints(ends);
  const Codes x = RandomCodes(tokens, k);
  Owned records(DType::kU8, {tokens, record});
  for (int64_t t = 0; t < tokens; ++t) {
    uint8_t* const to = records.as<uint8_t>() + t * record;
    std::memcpy(to, x.codes.as<uint8_t>() + t * k, static_cast<size_t>(k));
    std::memcpy(to + scales_at, x.scales.as<float>() + t * 3, 12);
  }
  TensorView codes = TensorView::Contiguous(records.as<uint8_t>(), DType::kF8E4M3, {tokens, k});
  codes.strides[0] = record;
  TensorView scales =
      TensorView::Contiguous(records.as<uint8_t>() + scales_at, DType::kF32, {tokens, 3});
  scales.strides[0] = record / 4;

  const OwnedWeights w = RandomWeights(rng_, DType::kF8E4M3, 5, n, k);
  const OwnedWeights w2 = RandomWeights(rng_, DType::kF8E4M3, 5, n, k);
  Owned expected = Random(rng_, DType::kBF16, {rows, n}), actual = expected;
  const Owned before = expected;
  GroupedLinearArgs args{
      .x = codes, .x_scales = scales, .row_index = row_index.view(), .offsets = offsets.view()};
  args.w = w.views;
  args.w2 = w2.views;
  args.epilogue = Epilogue::kSiluMul;
  args.out = expected.view();
  EXPECT_OK(GroupedLinear(*reference_, args));
  args.out = actual.view();
  EXPECT_OK(GroupedLinear(*device_, args));
  EXPECT_TRUE(Near(expected, actual, Epsilon(k)));
  EXPECT_EQ(RowBytes(actual, 27), RowBytes(before, 27));

  const Codes x0 = RowsOf(x, index[20], index[20] + 1);
  Owned single(DType::kBF16, {1, n});
  EXPECT_OK(Linear(*device_, {.x = x0.codes.view(),
                              .x_scales = x0.scales.view(),
                              .w = w.views[3],
                              .w2 = w2.views[3],
                              .out = single.view(),
                              .epilogue = Epilogue::kSiluMul}));
  EXPECT_EQ(single.bytes(), RowBytes(actual, 20));
}

// Mean rows of a group for each of a GPU's tiles; groups that fill several.
TEST_P(LinearFp8Test, GroupsOfEverySizeMatchReference) {
  CaseShare share(GetParam(), 5);
  const std::vector<std::vector<int32_t>> sizes = {{3, 0, 17}, {0, 66, 20}, {5, 130, 0, 140}};
  for (const std::vector<int32_t>& groups : sizes) {
    if (!share.Mine()) continue;
    const int64_t rows = std::accumulate(groups.begin(), groups.end(), int64_t{0});
    const int64_t n = 40, k = 144;
    std::vector<int32_t> ends = {0};
    for (const int32_t count : groups) ends.push_back(ends.back() + count);
    const Owned offsets = Ints(ends);
    const Codes x = RandomCodes(rows, k);
    const OwnedWeights w = RandomWeights(rng_, DType::kF8E4M3, groups.size(), n, k);
    Owned expected(DType::kF32, {rows, n}), actual = expected;
    GroupedLinearArgs args{.x = x.codes.view(),
                           .x_scales = x.scales.view(),
                           .offsets = offsets.view(),
                           .w = w.views,
                           .out = expected.view()};
    EXPECT_OK(GroupedLinear(*reference_, args));
    args.out = actual.view();
    EXPECT_OK(GroupedLinear(*device_, args));
    EXPECT_TRUE(Near(expected, actual, Epsilon(k)));
  }
}

TEST_P(LinearFp8Test, QuantizesAsManyRowsAsAreCounted) {
  const Owned x = Random(rng_, DType::kBF16, {5, 150});
  const Codes all = Quantize(x);
  for (const int32_t count : {0, 3, 5}) {
    const Owned row_count = Ints({count});
    Codes part{Owned(DType::kF8E4M3, {5, 150}), Owned(DType::kF32, {5, 2})};
    EXPECT_OK(QuantizeFp8(*device_, {.x = x.view(),
                                     .out = part.codes.view(),
                                     .scales = part.scales.view(),
                                     .row_count = row_count.view()}));
    for (int64_t r = 0; r < 5; ++r) {
      EXPECT_EQ(RowBytes(part.codes, r), r < count ? RowBytes(all.codes, r) : TestBytes(150));
      EXPECT_EQ(RowBytes(part.scales, r), r < count ? RowBytes(all.scales, r) : TestBytes(8));
    }
  }
}

TEST_P(LinearFp8Test, RefusesRowsWithoutTheirScalesOrForOtherWeights) {
  const Codes x = RandomCodes(2, 192);
  const OwnedWeight codes = RandomWeight(rng_, DType::kF8E4M3, 8, 192);
  const OwnedWeight plain = RandomWeight(rng_, DType::kBF16, 8, 192);
  Owned out(DType::kF32, {2, 8});
  const auto refusal = [&](const TensorView& rows, const TensorView& scales, const Weight& w) {
    const absl::Status status =
        Linear(*device_, {.x = rows, .x_scales = scales, .w = w, .out = out.view()});
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return std::string(status.message());
  };
  EXPECT_NE(refusal(x.codes.view(), {}, codes.view()).find("scales of F8E4M3 rows"),
            std::string::npos);
  EXPECT_NE(refusal(x.codes.view(), x.scales.view(), plain.view()).find("in blocks of 128"),
            std::string::npos);
  OwnedWeight narrow = codes;
  narrow.scales = Owned(DType::kF32, {1, 3});
  Weight blocks = narrow.view();
  blocks.block_k = 64;
  EXPECT_NE(refusal(x.codes.view(), x.scales.view(), blocks).find("blocks of 64 k"),
            std::string::npos);
  const Owned floats = Random(rng_, DType::kBF16, {2, 192});
  EXPECT_NE(refusal(floats.view(), x.scales.view(), codes.view()).find("not F8E4M3"),
            std::string::npos);
}

BATON_INSTANTIATE_KERNEL_TEST(LinearFp8Test);

}  // namespace
}  // namespace baton::kernels
