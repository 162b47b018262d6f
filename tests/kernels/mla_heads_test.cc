// The maps of each head between queries or outputs and latents, on shapes that the emulated GPU
// computes in seconds.

#include "tests/kernels/kernel_test_util.h"

namespace baton::kernels {
namespace {

struct Shape {
  int64_t heads, nope, rope, v, kv_lora;
  int64_t block_n, block_k;  // of E4M3
};

// Block scales that change at a head's row 28, within a step of 16; heads of V3; latents and nope
// values that end early; blocks smaller than a step.
const Shape kHeadShapes[] = {
    {3, 40, 8, 10, 32, 128, 128},
    {1, 128, 64, 128, 512, 128, 128},
    {2, 67, 3, 9, 96, 128, 64},
    {2, 24, 8, 20, 160, 5, 64},
};

class MlaHeadsTest : public KernelTest {
 protected:
  struct Matrix {
    OwnedWeight owned;
    Shape shape;
    Weight view() const {
      Weight weight = owned.view();
      weight.block_n = static_cast<int>(shape.block_n);
      weight.block_k = static_cast<int>(shape.block_k);
      return weight;
    }
  };
  Matrix KvB(const Shape& shape, DType dtype) {
    const int64_t n = shape.heads * (shape.nope + shape.v);
    Matrix matrix{RandomWeight(rng_, dtype, n, shape.kv_lora), shape};
    if (dtype != DType::kF8E4M3) return matrix;
    Owned& scales = matrix.owned.scales;
    scales = Owned(DType::kF32, {(n + shape.block_n - 1) / shape.block_n,
                                 (shape.kv_lora + shape.block_k - 1) / shape.block_k});
    for (int64_t i = 0; i < scales.elements(); ++i) {
      scales.set(i, static_cast<float>(0.002 + 0.02 * rng_.Uniform()));
    }
    return matrix;
  }
  static Owned Absorb(Device& device, const Shape& shape, const Owned& q, const Weight& kv_b,
                      DType out_type) {
    Owned out(out_type, {q.shape()[0], q.shape()[1], shape.kv_lora});
    EXPECT_OK(MlaAbsorbQ(
        device, {.q = q.view(), .kv_b = kv_b, .out = out.view(), .v = static_cast<int>(shape.v)}));
    return out;
  }
  static Owned Expand(Device& device, const Shape& shape, const Owned& o_lat, const Weight& kv_b,
                      DType out_type) {
    Owned out(out_type, {o_lat.shape()[0], shape.heads, shape.v});
    EXPECT_OK(MlaExpandV(device, {.o_lat = o_lat.view(), .kv_b = kv_b, .out = out.view()}));
    return out;
  }
  Owned Q(const Shape& shape, int64_t rows, DType act) {
    return Random(rng_, act, {rows, shape.heads, shape.nope + shape.rope});
  }
};

struct Types {
  DType act, weight, lat;
};
constexpr Types kTypes[] = {
    {DType::kF32, DType::kBF16, DType::kF32},    {DType::kBF16, DType::kF32, DType::kF32},
    {DType::kBF16, DType::kBF16, DType::kF32},   {DType::kBF16, DType::kBF16, DType::kBF16},
    {DType::kBF16, DType::kF8E4M3, DType::kF32}, {DType::kBF16, DType::kF8E4M3, DType::kBF16},
};

TEST_P(MlaHeadsTest, MatchReference) {
  CaseShare share(GetParam(), 9);
  for (const Shape& shape : kHeadShapes) {
    for (const Types& types : kTypes) {
      for (const int64_t rows : {int64_t{1}, int64_t{18}, int64_t{65}}) {
        if (!share.Mine() || (rows > 18 && shape.kv_lora > 160)) continue;
        SCOPED_TRACE(std::to_string(shape.nope) + DTypeName(types.act) + DTypeName(types.weight) +
                     std::to_string(rows) + " rows");
        const Matrix kv_b = KvB(shape, types.weight);
        const Owned q = Q(shape, rows, types.act);
        const Owned lat = Absorb(*reference_, shape, q, kv_b.view(), types.lat);
        EXPECT_TRUE(Near(lat, Absorb(*device_, shape, q, kv_b.view(), types.lat),
                         8 * SumEpsilon(shape.nope)));
        EXPECT_TRUE(Near(Expand(*reference_, shape, lat, kv_b.view(), types.act),
                         Expand(*device_, shape, lat, kv_b.view(), types.act),
                         16 * SumEpsilon(shape.kv_lora)));
      }
    }
  }
}

// A row alone has its bits in a batch, and a head alone, with its rows of kv_b, those it has among
// others.
TEST_P(MlaHeadsTest, RowsAndHeadsAreIndependent) {
  CaseShare share(GetParam(), 7);
  for (const Shape& shape : {kHeadShapes[0], kHeadShapes[2], kHeadShapes[3]}) {
    for (const DType weight : {DType::kBF16, DType::kF8E4M3}) {
      if (!share.Mine()) continue;
      SCOPED_TRACE(std::to_string(shape.nope) + DTypeName(weight));
      const Matrix kv_b = KvB(shape, weight);
      const Owned q = Q(shape, 66, DType::kBF16);
      const Owned all = Absorb(*device_, shape, q, kv_b.view(), DType::kF32);
      for (const int64_t t : {int64_t{0}, int64_t{17}, int64_t{65}}) {
        EXPECT_EQ(Absorb(*device_, shape, Rows(q, t, t + 1), kv_b.view(), DType::kF32).bytes(),
                  RowBytes(all, t))
            << "row " << t;
      }
      const int64_t last = shape.heads - 1, per_head = shape.nope + shape.v;
      const int64_t depth = shape.nope + shape.rope;
      Owned q_last(DType::kBF16, {1, 1, depth});
      std::copy_n(q.as<uint16_t>() + last * depth, depth, q_last.as<uint16_t>());
      const Owned alone =
          Absorb(*device_, shape, q_last, kv_b.view().Rows(last * per_head, (last + 1) * per_head),
                 DType::kF32);
      EXPECT_EQ(std::memcmp(alone.as<float>(), all.as<float>() + last * shape.kv_lora,
                            alone.bytes().size()),
                0);
    }
  }
}

BATON_INSTANTIATE_KERNEL_TEST(MlaHeadsTest);

}  // namespace
}  // namespace baton::kernels
