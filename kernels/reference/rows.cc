// Embedding, norm, dense layers and quantization.

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/reference/reference_ops.h"
#include "kernels/reference/values.h"

namespace baton::kernels::reference {

absl::Status Embed(Device&, const EmbedArgs& args) {
  for (int64_t t = 0; t < args.ids.dim(0); ++t) {
    const int32_t id = args.ids.as<const int32_t>()[t];
    for (int64_t i = 0; i < args.table.dim(1); ++i) Put(args.out, t, i, At(args.table, id, i));
  }
  return absl::OkStatus();
}

absl::Status RmsNorm(Device&, const RmsNormArgs& args) {
  const int64_t hidden = args.x.dim(1);
  for (int64_t t = 0; t < args.x.dim(0); ++t) {
    double squares = 0.0;
    for (int64_t i = 0; i < hidden; ++i) {
      if (!args.add.absent()) Put(args.x, t, i, At(args.x, t, i) + At(args.add, t, i));
      squares += At(args.x, t, i) * At(args.x, t, i);
    }
    const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(hidden) + args.eps);
    for (int64_t i = 0; i < hidden; ++i) {
      const double weight = args.weight.dtype == DType::kF32
                                ? args.weight.as<const float>()[i]
                                : Bf16ToF32(args.weight.as<const uint16_t>()[i]);
      Put(args.out, t, i, At(args.x, t, i) * inverse * weight);
    }
  }
  return absl::OkStatus();
}

absl::Status Linear(Device&, const LinearArgs& args) {
  for (int64_t t = 0; t < args.x.dim(0); ++t) {
    for (int64_t n = 0; n < args.w.w.dim(0); ++n) {
      double value = Dot(args.x, t, args.w, n, args.x_scales);
      if (args.epilogue == Epilogue::kSiluMul)
        value = Silu(value) * Dot(args.x, t, args.w2, n, args.x_scales);
      if (args.epilogue == Epilogue::kAdd) value += At(args.out, t, n);
      Put(args.out, t, n, value);
    }
  }
  return absl::OkStatus();
}

absl::Status GroupedLinear(Device&, const GroupedLinearArgs& args) {
  const int32_t* offsets = args.offsets.as<const int32_t>();
  for (size_t e = 0; e < args.w.size(); ++e) {
    for (int64_t row = offsets[e]; row < offsets[e + 1]; ++row) {
      const int64_t source =
          args.row_index.absent() ? row : args.row_index.as<const int32_t>()[row];
      for (int64_t n = 0; n < args.out.dim(1); ++n) {
        double value = Dot(args.x, source, args.w[e], n, args.x_scales);
        if (args.epilogue == Epilogue::kSiluMul) {
          value = Silu(value) * Dot(args.x, source, args.w2[e], n, args.x_scales);
        }
        Put(args.out, row, n, value);
      }
    }
  }
  return absl::OkStatus();
}

namespace {

// The code whose value is nearest to `value`, the even one of two: by trying all of them.
uint8_t NearestCode(float value) {
  if (std::isnan(value)) return std::signbit(value) ? 0xFF : 0x7F;
  const uint8_t sign = std::signbit(value) ? 0x80 : 0;
  const double magnitude = std::fabs(value);
  uint8_t best = 0;
  for (uint8_t code = 1; code < 0x7F; ++code) {
    const double distance = std::fabs(F8E4M3ToF32(code) - magnitude);
    const double best_distance = std::fabs(F8E4M3ToF32(best) - magnitude);
    if (distance < best_distance || (distance == best_distance && code % 2 == 0)) best = code;
  }
  return sign | best;
}

}  // namespace

absl::Status QuantizeFp8(Device&, const QuantizeFp8Args& args) {
  constexpr int64_t kGroup = 128;
  const int64_t k = args.x.dim(1);
  const int64_t rows =
      args.row_count.absent() ? args.x.dim(0) : args.row_count.as<const int32_t>()[0];
  for (int64_t t = 0; t < rows; ++t) {
    uint8_t* out = args.out.row<uint8_t>(t);
    for (int64_t begin = 0; begin < k; begin += kGroup) {
      const int64_t end = std::min(begin + kGroup, k);
      float largest = 0.0f;
      bool finite = true;
      for (int64_t i = begin; i < end; ++i) {
        const float magnitude = std::fabs(static_cast<float>(At(args.x, t, i)));
        largest = std::max(largest, magnitude);
        finite = finite && std::isfinite(magnitude);
      }
      float scale = largest / 448.0f;
      if (scale == 0.0f) scale = 1.0f;  // all zero, or so small that the scale vanishes
      if (!finite) scale = std::numeric_limits<float>::quiet_NaN();
      for (int64_t i = begin; i < end; ++i) {
        out[i] = NearestCode(static_cast<float>(At(args.x, t, i)) / scale);
      }
      args.scales.row<float>(t)[begin / kGroup] = scale;
    }
  }
  return absl::OkStatus();
}

}  // namespace baton::kernels::reference
