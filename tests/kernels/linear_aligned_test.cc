// Linear and GroupedLinear where all rows begin at multiples of 16 bytes, for which a GPU may have
// kernels of its own: several stages of k, tiles of all sizes and their last ones, both weights.

#include "tests/kernels/kernel_test_util.h"

namespace baton::kernels {
namespace {

class LinearAlignedTest : public KernelTest {
 protected:
  // Schedules of the emulation share the cases out.
  bool Takes(size_t index) const {
    return GetParam().seed == 0 || (GetParam().seed / 2 + index) % 2 == 0;
  }
  static DType WeightType(size_t index) { return index % 2 == 0 ? DType::kF8E4M3 : DType::kBF16; }
  // Rows [begin, end) of x through the op.
  Owned Run(const Owned& x, const OwnedWeight& w, const OwnedWeight* w2, int64_t begin,
            int64_t end) {
    const Owned part = Rows(x, begin, end);
    Owned out(DType::kF32, {end - begin, w.w.shape()[0]});
    LinearArgs args{.x = part.view(), .w = w.view(), .out = out.view()};
    if (w2 != nullptr) {
      args.w2 = w2->view();
      args.epilogue = Epilogue::kSiluMul;
    }
    EXPECT_OK(Linear(*device_, args));
    return out;
  }
};

TEST_P(LinearAlignedTest, MatchesReference) {
  struct Case {
    int64_t rows, n, k;
    Epilogue epilogue;
  };
  const Case cases[] = {{1, 130, 1040, Epilogue::kNone},    {3, 130, 520, Epilogue::kAdd},
                        {17, 70, 1296, Epilogue::kSiluMul}, {20, 257, 648, Epilogue::kNone},
                        {66, 129, 528, Epilogue::kAdd},     {131, 65, 392, Epilogue::kSiluMul},
                        {5, 8, 16, Epilogue::kSiluMul},     {129, 64, 128, Epilogue::kNone}};
  for (size_t i = 0; i < std::size(cases); ++i) {
    if (!Takes(i / 2)) continue;
    const auto& [rows, n, k, epilogue] = cases[i];
    SCOPED_TRACE("case " + std::to_string(i));
    const Owned x = Random(rng_, DType::kBF16, {rows, k});
    const OwnedWeight w = RandomWeight(rng_, WeightType(i), n, k);
    const OwnedWeight w2 = RandomWeight(rng_, WeightType(i), n, k);
    Owned expected = Random(rng_, DType::kF32, {rows, n}), actual = expected;
    LinearArgs args{.x = x.view(), .w = w.view(), .epilogue = epilogue};
    if (epilogue == Epilogue::kSiluMul) args.w2 = w2.view();
    args.out = expected.view();
    EXPECT_OK(Linear(*reference_, args));
    args.out = actual.view();
    EXPECT_OK(Linear(*device_, args));
    EXPECT_TRUE(Near(expected, actual, 32 * SumEpsilon(k)));
  }
}

TEST_P(LinearAlignedTest, TilesAndBatchesShowInNoBit) {
  for (size_t i = 0; i < 2; ++i) {
    if (!Takes(i)) continue;
    SCOPED_TRACE(DTypeName(WeightType(i)));
    const int64_t rows = 130, n = 40, k = 272;
    const Owned x = Random(rng_, DType::kBF16, {rows, k});
    const OwnedWeight w = RandomWeight(rng_, WeightType(i), n, k);
    const OwnedWeight w2 = RandomWeight(rng_, WeightType(i), n, k);
    const Owned all = Run(x, w, &w2, 0, rows);
    for (const int64_t r : {int64_t{0}, int64_t{63}, rows - 1}) {
      EXPECT_EQ(Run(x, w, &w2, r, r + 1).bytes(), RowBytes(all, r)) << "row " << r;
    }
    for (const int64_t batch : {16, 17, 65}) {
      const Owned part = Run(x, w, &w2, rows - batch, rows);
      EXPECT_EQ(RowBytes(part, 0), RowBytes(all, rows - batch)) << batch << " rows";
      EXPECT_EQ(RowBytes(part, batch - 1), RowBytes(all, rows - 1)) << batch << " rows";
    }
  }
}

// A slice of a matrix, wherever in a block of scales it begins, gives those outputs of the whole.
TEST_P(LinearAlignedTest, SlicesOfAMatrixGiveTheSameBits) {
  if (!Takes(0)) return;
  const Owned x = Random(rng_, DType::kBF16, {6, 208});
  const OwnedWeight w = RandomWeight(rng_, DType::kF8E4M3, 300, 208);
  const Owned all = Run(x, w, nullptr, 0, 6);
  Owned parts(DType::kF32, {6, 300});
  const int64_t ends[] = {0, 1, 96, 192, 300};
  for (size_t i = 0; i + 1 < std::size(ends); ++i) {
    EXPECT_OK(Linear(*device_, {.x = x.view(),
                                .w = w.view().Rows(ends[i], ends[i + 1]),
                                .out = parts.view().Slice(1, ends[i], ends[i + 1])}));
  }
  EXPECT_EQ(parts.bytes(), all.bytes());
}

// Groups without rows, one that ends within a tile, rows taken by index, rows behind the last.
TEST_P(LinearAlignedTest, GroupsMatchReferenceAndTheDenseOp) {
  const std::vector<int32_t> ends = {0, 1, 1, 8, 27, 27};
  const int64_t tokens = 9, rows = 29, n = 70, k = 272;
  std::vector<int32_t> index(rows, -1);
  for (size_t i = 0; i < 27; ++i) index[i] = static_cast<int32_t>(rng_.Below(tokens));
  const Owned row_index = Ints(index), offsets = Ints(ends);
  for (size_t i = 0; i < 2; ++i) {
    if (!Takes(i)) continue;
    SCOPED_TRACE(DTypeName(WeightType(i)));
    const Owned x = Random(rng_, DType::kBF16, {tokens, k});
    const OwnedWeights w = RandomWeights(rng_, WeightType(i), 5, n, k);
    const OwnedWeights w2 = RandomWeights(rng_, WeightType(i), 5, n, k);
    Owned expected = Random(rng_, DType::kBF16, {rows, n}), actual = expected;
    const Owned before = expected;
    GroupedLinearArgs args{.x = x.view(), .row_index = row_index.view(), .offsets = offsets.view()};
    args.w = w.views;
    args.w2 = w2.views;
    args.epilogue = Epilogue::kSiluMul;
    args.out = expected.view();
    EXPECT_OK(GroupedLinear(*reference_, args));
    args.out = actual.view();
    EXPECT_OK(GroupedLinear(*device_, args));
    EXPECT_TRUE(Near(expected, actual, 32 * SumEpsilon(k)));
    EXPECT_EQ(RowBytes(actual, 27), RowBytes(before, 27));
    Owned single(DType::kBF16, {1, n});
    const Owned x0 = Rows(x, index[20], index[20] + 1);
    EXPECT_OK(Linear(*device_, {.x = x0.view(),
                                .w = w.views[3],
                                .w2 = w2.views[3],
                                .out = single.view(),
                                .epilogue = Epilogue::kSiluMul}));
    EXPECT_EQ(single.bytes(), RowBytes(actual, 20));
  }
}

BATON_INSTANTIATE_KERNEL_TEST(LinearAlignedTest);

}  // namespace
}  // namespace baton::kernels
