// GroupedLinear with so many rows or groups that backends take other tiles, or more than one piece
// of a table of weights; sized for the emulated GPU.

#include <numeric>

#include "tests/kernels/kernel_test_util.h"

namespace baton::kernels {
namespace {

struct Groups {
  std::string name;
  std::vector<int32_t> rows;  // of each
  int64_t n, k;
};

// In the order of the CUDA backend's tiles, which the mean number of rows decides: 16, 64 and 128
// rows. Each has a group that ends within a tile and one without rows; the last one's second group
// has two tiles, and its columns are two blocks.
std::vector<Groups> TileGroups() {
  return {
      {"16", {3, 0, 17}, 40, 72}, {"64", {0, 66, 20}, 40, 72}, {"128", {5, 130, 0, 140}, 70, 72}};
}

// 61 gate and 61 up matrices are more than the 120 that one launch brings to the GPU's table; rows
// only where the two launches meet, and at the ends.
Groups ManyGroups() {
  Groups groups{"table", std::vector<int32_t>(61, 0), 8, 64};
  for (const size_t group : {size_t{0}, size_t{58}, size_t{59}, size_t{60}}) groups.rows[group] = 1;
  return groups;
}

class GroupedTilesTest : public KernelTest {
 protected:
  void Check(const Groups& groups, DType act, DType weight, Epilogue epilogue);
};

void GroupedTilesTest::Check(const Groups& groups, DType act, DType weight, Epilogue epilogue) {
  SCOPED_TRACE(groups.name + " " + DTypeName(act) + " " + DTypeName(weight) +
               (epilogue == Epilogue::kSiluMul ? " gate and up" : ""));
  const bool pair = epilogue == Epilogue::kSiluMul;
  const int64_t rows = std::accumulate(groups.rows.begin(), groups.rows.end(), int64_t{0});
  std::vector<int32_t> offsets = {0}, index;
  for (const int32_t count : groups.rows) offsets.push_back(offsets.back() + count);
  for (int64_t r = 0; r < rows; ++r) index.push_back(static_cast<int32_t>(rows - 1 - r));
  const Owned group_offsets = Ints(offsets), row_index = Ints(index);
  const Owned x = Random(rng_, act, {rows, groups.k});
  const size_t count = groups.rows.size();
  const OwnedWeights w = RandomWeights(rng_, weight, count, groups.n, groups.k);
  const OwnedWeights w2 = RandomWeights(rng_, weight, pair ? count : 0, groups.n, groups.k);
  Owned expected(act, {rows, groups.n}), actual = expected;
  GroupedLinearArgs args{.x = x.view(),
                         .row_index = row_index.view(),
                         .offsets = group_offsets.view(),
                         .w = w.views,
                         .w2 = w2.views,
                         .out = expected.view(),
                         .epilogue = epilogue};
  EXPECT_OK(GroupedLinear(*reference_, args));
  args.out = actual.view();
  EXPECT_OK(GroupedLinear(*device_, args));
  EXPECT_TRUE(Near(expected, actual, 32 * SumEpsilon(groups.k)));

  // The last row of each group alone, by a dense product, has the same bits.
  for (size_t g = 0; g < groups.rows.size(); ++g) {
    if (groups.rows[g] == 0) continue;
    const int64_t r = offsets[g + 1] - 1;
    const Owned one = Rows(x, rows - 1 - r, rows - r);
    Owned single(act, {1, groups.n});
    EXPECT_OK(Linear(*device_, {.x = one.view(),
                                .w = w.views[g],
                                .w2 = pair ? w2.views[g] : Weight{},
                                .out = single.view(),
                                .epilogue = epilogue}));
    EXPECT_EQ(single.bytes(), RowBytes(actual, r)) << "group " << g;
  }
}

TEST_P(GroupedTilesTest, EveryTileMatchesReference) {
  CaseShare share(GetParam(), 9);
  for (const Groups& groups : TileGroups()) {
    for (const DType act : {DType::kF32, DType::kBF16}) {
      for (const DType weight : {DType::kBF16, DType::kF8E4M3}) {
        for (const Epilogue epilogue : {Epilogue::kNone, Epilogue::kSiluMul}) {
          if (share.Mine()) Check(groups, act, weight, epilogue);
        }
      }
    }
  }
}

TEST_P(GroupedTilesTest, TablesOfAnyLengthMatchReference) {
  CaseShare share(GetParam(), 3);
  for (const DType weight : {DType::kBF16, DType::kF8E4M3}) {
    if (share.Mine()) Check(ManyGroups(), DType::kBF16, weight, Epilogue::kSiluMul);
  }
}

BATON_INSTANTIATE_KERNEL_TEST(GroupedTilesTest);

}  // namespace
}  // namespace baton::kernels
