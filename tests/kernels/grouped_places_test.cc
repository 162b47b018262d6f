// GroupedLinear with weights in places of one buffer, as experts lie on a GPU: at equal distances,
// which backends may make use of, or not. No bit may show where they lie.

#include "tests/kernels/kernel_test_util.h"

namespace baton::kernels {
namespace {

constexpr int64_t kGroups = 5, kN = 70;
const std::vector<int32_t> kRows = {3, 0, 17, 1, 0};

// A buffer with a matrix of each group, `at` rows of k from its begin, and `shift` bytes more.
// Those of groups without rows may lie behind its end.
struct Placed {
  Owned memory;
  std::vector<Weight> views;

  Placed(const OwnedWeights& from, int64_t rows, const std::vector<int64_t>& at, int64_t shift)
      : views(from.views) {
    const TensorView& first = from.views[0].w;
    const int64_t row_bytes = first.strides[0] * static_cast<int64_t>(DTypeBytes(first.dtype));
    memory = Owned(DType::kU8, {rows * row_bytes});
    for (size_t g = 0; g < views.size(); ++g) {
      const int64_t begin = at[g] * row_bytes + static_cast<int64_t>(g) * shift;
      views[g].w.data = memory.as<uint8_t>() + begin;
      if (begin + kN * row_bytes > memory.elements()) continue;
      std::memcpy(views[g].w.data, from.views[g].w.data, from.views[g].w.bytes());
    }
  }
};

class GroupedPlacesTest : public KernelTest {
 protected:
  // Rows in BF16 or, with `codes`, as QuantizeFp8 makes them.
  void Check(DType weight, bool codes, bool pair, int64_t k);
};

void GroupedPlacesTest::Check(DType weight, bool codes, bool pair, int64_t k) {
  SCOPED_TRACE(std::string(codes ? "codes" : "BF16") + " " + DTypeName(weight) +
               (pair ? " gate and up" : "") + ", k " + std::to_string(k));
  std::vector<int32_t> ends = {0}, index;
  for (const int32_t rows : kRows) ends.push_back(ends.back() + rows);
  for (int32_t r = 0; r < ends.back(); ++r) index.push_back((r * 5 + 1) % 8);
  const Owned offsets = Ints(ends), row_index = Ints(index);
  const Owned x = Random(rng_, DType::kBF16, {8, k});
  Owned x_codes(DType::kF8E4M3, {8, k}), x_scales(DType::kF32, {8, (k + 127) / 128});
  EXPECT_OK(
      QuantizeFp8(*reference_, {.x = x.view(), .out = x_codes.view(), .scales = x_scales.view()}));
  const OwnedWeights w = RandomWeights(rng_, weight, kGroups, kN, k);
  const OwnedWeights w2 = RandomWeights(rng_, weight, pair ? kGroups : 0, kN, k);
  const auto run = [&](const std::vector<Weight>& of_w, const std::vector<Weight>& of_w2) {
    Owned out(DType::kF32, {ends.back(), kN});
    GroupedLinearArgs args{.x = codes ? x_codes.view() : x.view(),
                           .row_index = row_index.view(),
                           .offsets = offsets.view(),
                           .w = of_w,
                           .w2 = of_w2,
                           .out = out.view(),
                           .epilogue = pair ? Epilogue::kSiluMul : Epilogue::kNone};
    if (codes) args.x_scales = x_scales.view();
    EXPECT_OK(GroupedLinear(*device_, args));
    return out;
  };
  const Owned apart = run(w.views, w2.views);
  // Places of 80 rows in another order than the groups', with a place between that is not theirs;
  // those of the last group, which has no rows, are not even there.
  const std::vector<int64_t> places = {240, 0, 80, 320, 960};
  const Placed at_steps(w, 400, places, 0);
  if (!pair) {
    EXPECT_EQ(run(at_steps.views, {}).bytes(), apart.bytes());
    EXPECT_EQ(run(Placed(w, 401, places, 16).views, {}).bytes(), apart.bytes());
    return;
  }
  // w2 at steps of its own, then not at any.
  const std::vector<int64_t> others = {0, 160, 480, 320, 1600};
  const Placed second(w2, 560, others, 0), aside(w2, 561, others, 16);
  EXPECT_EQ(run(at_steps.views, second.views).bytes(), apart.bytes());
  EXPECT_EQ(run(at_steps.views, aside.views).bytes(), apart.bytes());
}

TEST_P(GroupedPlacesTest, WhereWeightsLieShowsInNoBit) {
  CaseShare share(GetParam(), 7);
  for (const bool pair : {false, true}) {
    // K that ends within a stage of 128 and within one of 64, and at its end.
    for (const int64_t k : {272, 336, 128}) {
      if (share.Mine()) Check(DType::kBF16, false, pair, k);
      if (share.Mine()) Check(DType::kF8E4M3, false, pair, k);
      if (share.Mine()) Check(DType::kF8E4M3, true, pair, k);
    }
  }
}

// Two slots may be of one expert; all of them, where a rank has no other.
TEST_P(GroupedPlacesTest, GroupsMayShareAMatrix) {
  CaseShare share(GetParam(), 3);
  for (const DType type : {DType::kBF16, DType::kF8E4M3}) {
    for (const size_t others : {0, 1}) {
      if (!share.Mine()) continue;
      const Owned x = Random(rng_, DType::kBF16, {6, 144}), offsets = Ints({0, 2, 4, 6});
      const OwnedWeights w = RandomWeights(rng_, type, 2, kN, 144);
      const Placed placed(w, 2 * kN, {0, kN}, 0);
      const std::vector<Weight> groups = {placed.views[0], placed.views[others], placed.views[0]};
      Owned out(DType::kF32, {6, kN}), single(DType::kF32, {6, kN});
      EXPECT_OK(GroupedLinear(
          *device_, {.x = x.view(), .offsets = offsets.view(), .w = groups, .out = out.view()}));
      for (int64_t g = 0; g < 3; ++g) {
        const Owned rows = Rows(x, 2 * g, 2 * g + 2);
        EXPECT_OK(Linear(*device_, {.x = rows.view(),
                                    .w = groups[static_cast<size_t>(g)],
                                    .out = single.view().Slice(0, 2 * g, 2 * g + 2)}));
      }
      EXPECT_EQ(out.bytes(), single.bytes());
    }
  }
}

BATON_INSTANTIATE_KERNEL_TEST(GroupedPlacesTest);

}  // namespace
}  // namespace baton::kernels
