#ifndef BATON_TESTS_KERNELS_KERNEL_TEST_UTIL_H_
#define BATON_TESTS_KERNELS_KERNEL_TEST_UTIL_H_

// Random tensors, the list of devices under test, and comparison with the reference backend.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "gtest/gtest.h"
#include "kernels/numeric.h"
#include "kernels/ops.h"
#include "tests/kernels/test_devices.h"

namespace baton::kernels {

using TestBytes = std::vector<uint8_t, TestAllocator<uint8_t>>;

// A tensor that owns its memory. Copies are deep.
class Owned {
 public:
  Owned() = default;
  Owned(DType dtype, std::vector<int64_t> shape) : dtype_(dtype), shape_(std::move(shape)) {
    int64_t count = 1;
    for (int64_t extent : shape_) count *= extent;
    bytes_.resize(static_cast<size_t>(count) * DTypeBytes(dtype));
  }
  TensorView view() const {
    TensorView view;
    if (shape_.empty()) return view;
    view = TensorView::Contiguous(bytes_.data(), dtype_, {1});
    view.rank = static_cast<int>(shape_.size());
    int64_t stride = 1;
    for (int i = view.rank - 1; i >= 0; --i) {
      view.shape[static_cast<size_t>(i)] = shape_[static_cast<size_t>(i)];
      view.strides[static_cast<size_t>(i)] = stride;
      stride *= shape_[static_cast<size_t>(i)];
    }
    return view;
  }
  int64_t elements() const { return view().elements(); }
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(bytes_.data());
  }
  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(bytes_.data());
  }
  float at(int64_t i) const {
    switch (dtype_) {
      case DType::kF32:
        return as<float>()[i];
      case DType::kBF16:
        return Bf16ToF32(as<uint16_t>()[i]);
      case DType::kF8E4M3:
        return F8E4M3ToF32(as<uint8_t>()[i]);
      case DType::kI32:
        return static_cast<float>(as<int32_t>()[i]);
      default:
        return static_cast<float>(as<uint8_t>()[i]);
    }
  }
  void set(int64_t i, float value) {
    switch (dtype_) {
      case DType::kF32:
        as<float>()[i] = value;
        break;
      case DType::kBF16:
        as<uint16_t>()[i] = F32ToBf16(value);
        break;
      default:
        as<uint8_t>()[i] = F32ToF8E4M3(value);
    }
  }
  const TestBytes& bytes() const { return bytes_; }
  DType dtype() const { return dtype_; }
  const std::vector<int64_t>& shape() const { return shape_; }

 private:
  DType dtype_ = DType::kF32;
  std::vector<int64_t> shape_;
  TestBytes bytes_;
};

// Roughly normal (the sum of four uniforms), with standard deviation `scale`.
inline Owned Random(Rng& rng, DType dtype, std::vector<int64_t> shape, float scale = 1.0f) {
  Owned tensor(dtype, std::move(shape));
  for (int64_t i = 0; i < tensor.elements(); ++i) {
    double sum = -2.0;
    for (int j = 0; j < 4; ++j) sum += rng.Uniform();
    tensor.set(i, static_cast<float>(sum * 1.7320508) * scale);
  }
  return tensor;
}

inline Owned Ints(std::vector<int32_t> values, std::vector<int64_t> shape = {}) {
  if (shape.empty()) shape = {static_cast<int64_t>(values.size())};
  Owned tensor(DType::kI32, std::move(shape));
  if (!values.empty()) std::memcpy(tensor.as<int32_t>(), values.data(), values.size() * 4);
  return tensor;
}

// A weight with owned parts; FP8 gets scales that differ from block to block.
struct OwnedWeight {
  Owned w, scales;
  Weight view() const { return {.w = w.view(), .scales = scales.view()}; }
};
inline OwnedWeight RandomWeight(Rng& rng, DType dtype, int64_t n, int64_t k) {
  OwnedWeight weight;
  if (dtype != DType::kF8E4M3) {
    weight.w = Random(rng, dtype, {n, k}, 0.5f);
    return weight;
  }
  weight.w = Random(rng, dtype, {n, k}, 60.0f);
  weight.scales = Owned(DType::kF32, {(n + 127) / 128, (k + 127) / 128});
  for (int64_t i = 0; i < weight.scales.elements(); ++i) {
    weight.scales.set(i, static_cast<float>(0.002 + 0.02 * rng.Uniform()));
  }
  return weight;
}

// One weight for each group of GroupedLinear.
struct OwnedWeights {
  std::vector<OwnedWeight> owned;
  std::vector<Weight> views;
};
inline OwnedWeights RandomWeights(Rng& rng, DType dtype, size_t groups, int64_t n, int64_t k) {
  OwnedWeights weights;
  for (size_t g = 0; g < groups; ++g) weights.owned.push_back(RandomWeight(rng, dtype, n, k));
  for (const OwnedWeight& weight : weights.owned) weights.views.push_back(weight.view());
  return weights;
}

inline std::unique_ptr<Device> MakeDevice(BackendKind backend, int threads = 1,
                                          IsaLevel isa = IsaLevel::kAvx512Bf16) {
  auto device = CreateDevice({.backend = backend, .threads = threads, .max_isa = isa});
  BATON_CHECK(device.ok());
  return *std::move(device);
}

// A cpu device that shares out even the least work between its threads.
inline std::unique_ptr<Device> SplittingDevice(int threads, IsaLevel isa) {
  auto device = CreateDevice({.threads = threads, .max_isa = isa, .min_parallel_work = 0});
  BATON_CHECK(device.ok());
  return *std::move(device);
}

// The device of a test's parameter. Ops have finished when they return.
inline std::unique_ptr<Device> MakeDevice(const TestDevice& which, int threads) {
  auto device = CreateDevice({.backend = which.backend,
                              .threads = threads,
                              .max_isa = which.isa,
                              .warpgroups = which.warpgroups,
                              .dense_gemm = which.dense_gemm,
                              .blocking = true});
  BATON_CHECK(device.ok());
  return *std::move(device);
}
inline std::unique_ptr<Device> SplittingDevice(int threads, const TestDevice& which) {
  auto device = CreateDevice({.backend = which.backend,
                              .threads = threads,
                              .max_isa = which.isa,
                              .min_parallel_work = 0,
                              .warpgroups = which.warpgroups,
                              .dense_gemm = which.dense_gemm,
                              .blocking = true});
  BATON_CHECK(device.ok());
  return *std::move(device);
}
// One with working memory for the least part of an op's work at a time.
inline std::unique_ptr<Device> FrugalDevice(const TestDevice& which) {
  auto device = CreateDevice({.backend = which.backend,
                              .threads = 1,
                              .max_isa = which.isa,
                              .working_bytes = 1,
                              .dense_gemm = which.dense_gemm,
                              .blocking = true});
  BATON_CHECK(device.ok());
  return *std::move(device);
}

// The cpu backend's levels that this machine runs.
inline std::vector<IsaLevel> IsaLevels() {
  std::vector<IsaLevel> levels;
  for (IsaLevel isa :
       {IsaLevel::kPortable, IsaLevel::kAvx2, IsaLevel::kAvx512, IsaLevel::kAvx512Bf16}) {
    if (isa <= DetectIsa()) levels.push_back(isa);
  }
  return levels;
}

// Base of the suites that run every test on every device of test_devices.h.
class KernelTest : public ::testing::TestWithParam<TestDevice> {
 protected:
  KernelTest()
      : scope_(GetParam()),
        device_(MakeDevice(GetParam(), 2)),
        reference_(MakeDevice(BackendKind::kReference)) {}
  void TearDown() override { EXPECT_EQ(scope_.Fault(), ""); }

  TestDeviceScope scope_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Device> reference_;
  Rng rng_{20240601};
};

// Shares the cases of a test out over the emulated GPU's schedules, of which each runs every n-th
// case; other devices run all. With n odd and at most half of their number a case runs under two
// schedules at least, one of them with the race check.
class CaseShare {
 public:
  CaseShare(const TestDevice& device, uint64_t n)
      : n_(device.seed == 0 ? 1 : n), at_(device.seed) {}
  // Whether the next case is this device's.
  bool Mine() { return at_++ % n_ == 0; }

 private:
  const uint64_t n_;
  uint64_t at_;
};

#define BATON_INSTANTIATE_KERNEL_TEST(Suite)                                   \
  INSTANTIATE_TEST_SUITE_P(Devices, Suite, ::testing::ValuesIn(TestDevices()), \
                           [](const auto& device) { return device.param.name; })

// Both agree: NaN and infinities stand in the same places, and each other element differs by no
// more than one unit of the output's format plus `sum_epsilon` times the row's root mean square.
// The last dimension is the row. `sum_epsilon` is what a float sum may be off by relative to its
// terms: 2^-24 * (a small factor) * sqrt(length).
inline ::testing::AssertionResult Near(const Owned& expected, const Owned& actual,
                                       double sum_epsilon) {
  if (expected.shape() != actual.shape() || expected.dtype() != actual.dtype()) {
    return ::testing::AssertionFailure() << "different shapes or dtypes";
  }
  const int64_t row = expected.shape().back();
  const double format = expected.dtype() == DType::kF32    ? 0x1p-23
                        : expected.dtype() == DType::kBF16 ? 0x1p-7
                                                           : 0x1p-3;
  for (int64_t begin = 0; begin < expected.elements(); begin += row) {
    double squares = 0.0;
    int64_t finite = 0;
    for (int64_t i = begin; i < begin + row; ++i) {
      const float e = expected.at(i), a = actual.at(i);
      if (std::isnan(e) != std::isnan(a) || std::isinf(e) != std::isinf(a) ||
          (std::isinf(e) && (e > 0) != (a > 0))) {
        return ::testing::AssertionFailure()
               << "element " << i << " is " << a << ", expected " << e;
      }
      if (!std::isfinite(e)) continue;
      squares += static_cast<double>(e) * e;
      ++finite;
    }
    const double rms = finite == 0 ? 0.0 : std::sqrt(squares / static_cast<double>(finite));
    for (int64_t i = begin; i < begin + row; ++i) {
      const double e = expected.at(i), a = actual.at(i);
      if (!std::isfinite(e)) continue;
      const double allowed = format * std::fabs(e) + sum_epsilon * rms;
      if (!(std::fabs(a - e) <= allowed)) {
        return ::testing::AssertionFailure()
               << "element " << i << " is " << a << ", expected " << e << " +- " << allowed;
      }
    }
  }
  return ::testing::AssertionSuccess();
}

inline double SumEpsilon(int64_t length) {
  return 0x1p-24 * 8.0 * std::sqrt(static_cast<double>(std::max<int64_t>(length, 1)));
}

// Row r of the first dimension as bytes.
inline TestBytes RowBytes(const Owned& tensor, int64_t r) {
  const size_t row = tensor.bytes().size() / static_cast<size_t>(tensor.shape()[0]);
  const auto begin = tensor.bytes().begin() + static_cast<int64_t>(row) * r;
  return TestBytes(begin, begin + static_cast<int64_t>(row));
}

// Rows [begin, end) of the first dimension, copied.
inline Owned Rows(const Owned& tensor, int64_t begin, int64_t end) {
  std::vector<int64_t> shape = tensor.shape();
  const size_t row = tensor.bytes().size() / static_cast<size_t>(shape[0]);
  shape[0] = end - begin;
  Owned part(tensor.dtype(), shape);
  std::memcpy(part.as<uint8_t>(), tensor.bytes().data() + row * static_cast<size_t>(begin),
              row * static_cast<size_t>(end - begin));
  return part;
}

#define EXPECT_OK(expression)                                 \
  do {                                                        \
    const absl::Status baton_test_status = (expression);      \
    EXPECT_TRUE(baton_test_status.ok()) << baton_test_status; \
  } while (false)

}  // namespace baton::kernels

#endif  // BATON_TESTS_KERNELS_KERNEL_TEST_UTIL_H_
