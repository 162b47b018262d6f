// rows.h for one instruction set (see foreach_isa.h; no include guard).

#include "kernels/cpu/simd_isa.h"

namespace baton::kernels::cpu::BATON_ISA {

template <typename T>
void WidenTyped(const T* from, int64_t n, float* to) {
  ForVectors(n, [&](int64_t, const auto& load, const auto& store) { store(to, load(from)); });
}

inline void WidenRow(const TensorView& from, int64_t row, int64_t column, int64_t n, float* to) {
  switch (from.dtype) {
    case DType::kBF16:
      return WidenTyped(from.row<const uint16_t>(row) + column, n, to);
    case DType::kF8E4M3:
      return WidenTyped(from.row<const uint8_t>(row) + column, n, to);
    default:
      std::memcpy(to, from.row<const float>(row) + column, static_cast<size_t>(n) * sizeof(float));
  }
}

inline void NarrowRow(const float* from, int64_t n, const TensorView& to, int64_t row,
                      int64_t column) {
  if (to.dtype == DType::kF32) {
    std::memcpy(to.row<float>(row) + column, from, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  uint16_t* narrow = to.row<uint16_t>(row) + column;
  ForVectors(n, [&](int64_t, const auto& load, const auto& store) { store(narrow, load(from)); });
}

inline void NormRow(const float* x, int64_t n, const float* weight, float eps, float* to) {
  V squares = Zero();
  ForVectors(n, [&](int64_t, const auto& load, const auto&) {
    const V value = load(x);
    squares = Fma(value, value, squares);
  });
  const V inverse = Set(1.0f / std::sqrt(Sum(squares) / static_cast<float>(n) + eps));
  ForVectors(n, [&](int64_t, const auto& load, const auto& store) {
    store(to, Mul(Mul(load(x), inverse), load(weight)));
  });
}

inline void AddRow(const float* from, int64_t n, float* to) {
  ForVectors(n, [&](int64_t, const auto& load, const auto& store) {
    store(to, Add(load(static_cast<const float*>(to)), load(from)));
  });
}

inline void SigmoidRow(float* x, int64_t n) {
  ForVectors(n, [&](int64_t, const auto& load, const auto& store) {
    store(x, Sigmoid(load(static_cast<const float*>(x))));
  });
}

// Lanes behind the end of a row would count as exp(0 - best); they are left out by a scalar pass
// over the last vector.
inline float SumExpRow(const float* x, int64_t n, float best) {
  V sum = Zero();
  const V shift = Set(best);
  const int64_t whole = n / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) sum = Add(sum, Exp(Sub(Load(x + i), shift)));
  float rest[kLanes];
  std::fill(rest, rest + kLanes, -std::numeric_limits<float>::infinity());
  std::copy(x + whole, x + n, rest);
  if (whole < n) sum = Add(sum, Exp(Sub(Load(rest), shift)));
  return Sum(sum);
}

inline void SoftmaxRow(float* x, int64_t n) {
  float best = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < n; ++i) best = x[i] > best ? x[i] : best;
  const V sum = Set(SumExpRow(x, n, best)), shift = Set(best);
  ForVectors(n, [&](int64_t, const auto& load, const auto& store) {
    store(x, Div(Exp(Sub(load(static_cast<const float*>(x)), shift)), sum));
  });
}

}  // namespace baton::kernels::cpu::BATON_ISA
