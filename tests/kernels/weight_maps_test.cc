// Which products' weights are boxes of tensors on the emulated GPU: the lattices that are found,
// and that kernels then copy boxes, or do not.

#include "kernels/cuda/weight_maps.h"

#include <vector>

#include "kernels/cuda/gemm.h"
#include "tests/kernels/kernel_test_util.h"
#include "tests/simt/options.h"

namespace baton::kernels {
namespace {

using cuda::FindLattice;
using cuda::GemmLattice;
using cuda::GemmWeight;

// Matrices of rows of 96 bytes at these bytes.
std::vector<GemmWeight> At(const std::vector<int64_t>& bytes) {
  std::vector<GemmWeight> weights;
  weights.reserve(bytes.size());
  for (const int64_t at : bytes) {
    weights.push_back({.data = reinterpret_cast<const void*>(4096 + at), .stride = 96});
  }
  return weights;
}
std::vector<int32_t> LayersOf(const std::vector<GemmWeight>& weights) {
  std::vector<int32_t> layers;
  layers.reserve(weights.size());
  for (const GemmWeight& weight : weights) layers.push_back(weight.layer);
  return layers;
}

TEST(FindLattice, TakesTheLargestStepThatReachesAll) {
  std::vector<GemmWeight> weights = At({9600, 0, 24000, 9600});
  const GemmLattice found = FindLattice(weights, 50, 1);
  EXPECT_EQ(found.data, reinterpret_cast<const void*>(4096));
  EXPECT_EQ(found.row_bytes, 96);
  EXPECT_EQ(found.step_bytes, 4800);
  EXPECT_EQ(found.layers, 6);
  EXPECT_EQ(LayersOf(weights), (std::vector<int32_t>{2, 0, 5, 2}));
}

TEST(FindLattice, OneMatrixIsALattice) {
  std::vector<GemmWeight> weights = At({480, 480});
  const GemmLattice found = FindLattice(weights, 3, 1);
  EXPECT_EQ(found.data, weights[0].data);
  EXPECT_EQ(found.step_bytes, 3 * 96);
  EXPECT_EQ(found.layers, 1);
}

TEST(FindLattice, IsNotFoundWhereNoTensorMapFits) {
  const auto found = [](std::vector<GemmWeight> weights, int64_t rows) {
    return FindLattice(weights, rows, 1).data != nullptr;
  };
  EXPECT_TRUE(found(At({0, 9600}), 100));
  EXPECT_FALSE(found(At({0, 9600}), 101)) << "they overlap";
  EXPECT_FALSE(found(At({0, 9616}), 100)) << "not a number of rows";
  EXPECT_FALSE(found(At({8, 9608}), 100)) << "not aligned";
  EXPECT_FALSE(found(At({0, (int64_t{1} << 40) * 3}), 100)) << "too far";
  std::vector<GemmWeight> odd = At({0, 9600});
  odd[1].stride = 192;
  EXPECT_FALSE(found(odd, 10)) << "different strides";
  odd = At({0, 9600});
  odd[0].stride = odd[1].stride = 100;
  EXPECT_FALSE(found(odd, 10)) << "rows that are not aligned";
  odd[0].stride = odd[1].stride = 0;
  EXPECT_FALSE(found(odd, 1)) << "no stride";
}

class WeightMaps : public ::testing::Test {
 protected:
  // Boxes that the op copies.
  template <typename Args>
  uint64_t Boxes(absl::Status (*op)(Device&, const Args&), const Args& args,
                 bool warpgroups = true) {
    const std::unique_ptr<Device> device =
        CreateDevice({.backend = BackendKind::kCuda, .warpgroups = warpgroups, .blocking = true})
            .value();
    const uint64_t before = simt::BoxCount();
    EXPECT_OK(op(*device, args));
    return simt::BoxCount() - before;
  }
  Rng rng_{7};
};

TEST_F(WeightMaps, AMatrixIsCopiedInBoxes) {
  for (const DType type : {DType::kBF16, DType::kF8E4M3}) {
    // Two stages of k; 130 rows are two blocks with two boxes of 128 bytes of columns each.
    const Owned x = Random(rng_, DType::kBF16, {3, 208});
    const OwnedWeight w = RandomWeight(rng_, type, 130, 208);
    Owned out(DType::kF32, {3, 130});
    const LinearArgs args{.x = x.view(), .w = w.view(), .out = out.view()};
    EXPECT_EQ(Boxes(Linear, args), type == DType::kBF16 ? 16 : 8);
    EXPECT_EQ(Boxes(Linear, args, /*warpgroups=*/false), 0);
  }
}

// A head's rows of values are a layer: 24 behind 16 that are not read.
TEST_F(WeightMaps, ThoseOfHeadsAre) {
  for (const DType type : {DType::kBF16, DType::kF8E4M3}) {
    const Owned latents = Random(rng_, DType::kBF16, {3, 5, 64});
    const OwnedWeight kv_b = RandomWeight(rng_, type, 5 * 40, 64);
    const std::unique_ptr<Device> reference = MakeDevice(BackendKind::kReference);
    Owned expected(DType::kBF16, {3, 5, 24}), actual(DType::kBF16, {3, 5, 24});
    MlaExpandVArgs args{.o_lat = latents.view(), .kv_b = kv_b.view(), .out = expected.view()};
    EXPECT_OK(MlaExpandV(*reference, args));
    args.out = actual.view();
    EXPECT_EQ(Boxes(MlaExpandV, args), type == DType::kBF16 ? 20 : 10);
    EXPECT_TRUE(Near(expected, actual, 16 * SumEpsilon(64)));
  }
}

TEST_F(WeightMaps, GroupsAreWhereTheyLieAtEqualDistances) {
  const int64_t n = 40, k = 144, distance = 48 * k;
  const Owned x = Random(rng_, DType::kBF16, {4, k}), offsets = Ints({0, 2, 2, 4});
  const OwnedWeights w = RandomWeights(rng_, DType::kF8E4M3, 3, n, k);
  Owned memory(DType::kF8E4M3, {5, distance}), out(DType::kF32, {4, n});
  const auto boxes = [&](const std::vector<int64_t>& at) {
    std::vector<Weight> views = w.views;
    for (size_t g = 0; g < views.size(); ++g) views[g].w.data = memory.as<uint8_t>() + at[g];
    return Boxes(
        GroupedLinear,
        GroupedLinearArgs{.x = x.view(), .offsets = offsets.view(), .w = views, .out = out.view()});
  };
  // Two groups with rows: a block each, two stages of two boxes.
  EXPECT_EQ(boxes({3 * distance, 0, distance}), 8);
  EXPECT_EQ(boxes({3 * distance, 0, distance + 16}), 0);
}

}  // namespace
}  // namespace baton::kernels
