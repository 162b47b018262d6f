#ifndef BATON_TESTS_KERNELS_GPU_CASE_BUILDER_H_
#define BATON_TESTS_KERNELS_GPU_CASE_BUILDER_H_

// What the cases of gpu_cases.h are made with.

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/random.h"
#include "kernels/numeric.h"
#include "tests/kernels/gpu_cases.h"

namespace baton::kernels {

// DeepSeek-V3, section 4.2; a decode rank of 128 sequences, prefill in chunks of 4096.
struct GpuShape {
  int64_t decode_rows = 128, prefill_rows = 4096, context = 4096, prompt = 2048;
  int64_t hidden = 7168, heads = 128, tp_heads = 16, nope = 128, rope = 64, v = 128, lora = 512;
  int64_t experts = 256, local_experts = 32, top_k = 8, groups = 8, top_groups = 4, ffn = 2048;
  int64_t vocab = 129280, message_tokens = 16384, ranks = 8;
};
inline constexpr GpuShape kTinyShape = {.decode_rows = 3,
                                        .prefill_rows = 20,
                                        .context = 70,
                                        .prompt = 20,
                                        .hidden = 256,
                                        .heads = 2,
                                        .tp_heads = 2,
                                        .nope = 32,
                                        .rope = 16,
                                        .v = 64,
                                        .lora = 64,
                                        .experts = 8,
                                        .local_experts = 2,
                                        .top_k = 2,
                                        .groups = 2,
                                        .top_groups = 1,
                                        .ffn = 64,
                                        .vocab = 300,
                                        .message_tokens = 70,
                                        .ranks = 4};
inline constexpr int kPageTokens = 64;

// Makes a case's arguments.
class GpuCaseBuilder {
 public:
  GpuCaseBuilder(Device& device, std::string op, std::string what) : device_(device) {
    case_.op = std::move(op);
    case_.what = std::move(what);
  }

  // Uniform in [-1, 1): a random piece, again and again.
  TensorView Random(DType dtype, const std::vector<int64_t>& shape) {
    constexpr int64_t kPiece = 1 << 16;
    std::vector<uint8_t> piece(static_cast<size_t>(kPiece) * DTypeBytes(dtype));
    for (int64_t i = 0; i < kPiece; ++i) {
      const float value = static_cast<float>(2 * rng_.Uniform() - 1);
      uint8_t* const at = piece.data() + static_cast<size_t>(i) * DTypeBytes(dtype);
      if (dtype == DType::kF32) std::memcpy(at, &value, 4);
      const uint16_t bits = F32ToBf16(value);
      if (dtype == DType::kBF16) std::memcpy(at, &bits, 2);
      if (DTypeBytes(dtype) == 1) *at = F32ToF8E4M3(value);
    }
    const TensorView view = Empty(dtype, shape);
    for (size_t begin = 0; begin < view.bytes(); begin += piece.size()) {
      Copy(static_cast<char*>(view.data) + begin, piece.data(),
           std::min(piece.size(), view.bytes() - begin));
    }
    return view;
  }
  TensorView Ints(const std::vector<int32_t>& values, const std::vector<int64_t>& shape) {
    const TensorView view = Empty(DType::kI32, shape);
    BATON_CHECK_EQ(view.bytes(), values.size() * 4);
    Copy(view.data, values.data(), view.bytes());
    return view;
  }
  TensorView Longs(const std::vector<int64_t>& values) {
    const TensorView view = Empty(DType::kI64, {static_cast<int64_t>(values.size())});
    Copy(view.data, values.data(), view.bytes());
    return view;
  }
  TensorView Empty(DType dtype, const std::vector<int64_t>& shape) {
    TensorView view;
    view.dtype = dtype;
    for (const int64_t extent : shape) view.shape[static_cast<size_t>(view.rank++)] = extent;
    int64_t stride = 1;
    for (int i = view.rank - 1; i >= 0; --i) {
      view.strides[static_cast<size_t>(i)] = stride;
      stride *= view.shape[static_cast<size_t>(i)];
    }
    absl::StatusOr<DeviceBuffer> buffer = device_.Allocate(view.bytes());
    BATON_CHECK_MSG(buffer.ok(), buffer.status().ToString());
    view.data = buffer->data();
    case_.memory.push_back(std::make_shared<DeviceBuffer>(*std::move(buffer)));
    return view;
  }
  Weight Fp8(int64_t n, int64_t k) {
    return {.w = Random(DType::kF8E4M3, {n, k}),
            .scales = Random(DType::kF32, {(n + 127) / 128, (k + 127) / 128})};
  }
  // Of each of some experts, at equal distances, as a rank has them on a GPU.
  std::vector<Weight> Fp8Experts(int64_t experts, int64_t n, int64_t k) {
    const TensorView codes = Random(DType::kF8E4M3, {experts * n, k});
    std::vector<Weight> weights;
    for (int64_t e = 0; e < experts; ++e) {
      weights.push_back({.w = codes.Slice(0, e * n, (e + 1) * n),
                         .scales = Random(DType::kF32, {(n + 127) / 128, (k + 127) / 128})});
    }
    return weights;
  }
  Weight Bf16(int64_t n, int64_t k) { return {.w = Random(DType::kBF16, {n, k})}; }

  template <typename T>
  std::shared_ptr<T> Keep(T value) {
    auto kept = std::make_shared<T>(std::move(value));
    case_.memory.push_back(kept);
    return kept;
  }
  GpuCase Case(double bytes, double flops, GpuUnit unit, std::function<absl::Status(Device&)> run) {
    case_.bytes = bytes;
    case_.flops = flops;
    case_.unit = unit;
    case_.run = std::move(run);
    return std::move(case_);
  }
  void MarkDenseBf16() { case_.dense_bf16 = true; }
  void MarkDenseCodes() { case_.dense_codes = true; }
  Device& device() { return device_; }

 private:
  void Copy(void* to, const void* from, size_t bytes) {
    const absl::Status status = device_.CopyToDevice(to, from, bytes);
    BATON_CHECK_MSG(status.ok(), status.ToString());
  }

  Device& device_;
  Rng rng_{1};
  GpuCase case_;
};

inline double Bytes(const TensorView& view) { return static_cast<double>(view.bytes()); }
inline double Number(int64_t value) { return static_cast<double>(value); }

template <typename... Parts>
std::string Text(const Parts&... parts) {
  return absl::StrCat(parts...);
}

void AddMoeCases(const GpuShape& z, std::vector<GpuCaseMaker>& cases);

}  // namespace baton::kernels

#endif  // BATON_TESTS_KERNELS_GPU_CASE_BUILDER_H_
