// Linear with BF16 on both sides over many numbers of rows: what a backend that works in blocks of
// rows may get wrong.

#include "tests/kernels/kernel_test_util.h"

namespace baton::kernels {
namespace {

class LinearRowsTest : public KernelTest {};

// Around the sizes where backends change their way: added to what is there, in rows that are
// aligned and not.
TEST_P(LinearRowsTest, EveryNumberOfRowsIsTheReferences) {
  CaseShare share(GetParam(), 5);
  for (const int64_t rows : {1, 15, 16, 17, 33, 127, 128, 129, 256, 300}) {
    for (const int64_t n : {3, 40, 42}) {
      if (!share.Mine()) continue;
      SCOPED_TRACE(std::to_string(rows) + " rows, " + std::to_string(n) + " columns");
      const Owned x = Random(rng_, DType::kBF16, {rows, 64});
      const OwnedWeight w = RandomWeight(rng_, DType::kBF16, n, 64);
      Owned expected = Random(rng_, DType::kF32, {rows, n}), actual = expected;
      LinearArgs args{.x = x.view(), .w = w.view(), .epilogue = Epilogue::kAdd};
      args.out = expected.view();
      EXPECT_OK(Linear(*reference_, args));
      args.out = actual.view();
      EXPECT_OK(Linear(*device_, args));
      EXPECT_TRUE(Near(expected, actual, 8 * SumEpsilon(64)));
    }
  }
}

TEST_P(LinearRowsTest, RowsAreInvariant) {
  const OwnedWeight w = RandomWeight(rng_, DType::kBF16, 40, 128);
  for (DType type : {DType::kF32, DType::kBF16}) {
    const Owned x = Random(rng_, DType::kBF16, {300, 128});
    const auto run = [&](int64_t begin, int64_t end) {
      const Owned part = Rows(x, begin, end);
      Owned out(type, {end - begin, 40});
      EXPECT_OK(Linear(*device_, {.x = part.view(), .w = w.view(), .out = out.view()}));
      return out;
    };
    const Owned all = run(0, 300);
    for (const auto& [begin, end] : {std::pair{0, 1}, {299, 300}, {100, 228}, {50, 67}, {7, 300}}) {
      EXPECT_EQ(run(begin, end).bytes(), Rows(all, begin, end).bytes()) << begin << ".." << end;
    }
  }
}

BATON_INSTANTIATE_KERNEL_TEST(LinearRowsTest);

}  // namespace
}  // namespace baton::kernels
