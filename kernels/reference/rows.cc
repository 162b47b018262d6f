// Embedding, norm, dense layers and quantization.

#include <algorithm>

#include "kernels/page_entry.h"
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
      double value = Dot(args.x, t, args.w, n);
      if (args.epilogue == Epilogue::kSiluMul) value = Silu(value) * Dot(args.x, t, args.w2, n);
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
        double value = Dot(args.x, source, args.w[e], n);
        if (args.epilogue == Epilogue::kSiluMul) {
          value = Silu(value) * Dot(args.x, source, args.w2[e], n);
        }
        Put(args.out, row, n, value);
      }
    }
  }
  return absl::OkStatus();
}

absl::Status QuantizeFp8(Device&, const QuantizeFp8Args& args) {
  const int64_t k = args.x.dim(1);
  for (int64_t t = 0; t < args.x.dim(0); ++t) {
    for (int64_t begin = 0; begin < k; begin += kQuantGroup) {
      const int64_t count = std::min<int64_t>(kQuantGroup, k - begin);
      float group[kQuantGroup];
      for (int64_t i = 0; i < count; ++i) group[i] = static_cast<float>(At(args.x, t, begin + i));
      args.scales.row<float>(t)[begin / kQuantGroup] =
          QuantizeGroup(group, count, args.out.row<uint8_t>(t) + begin);
    }
  }
  return absl::OkStatus();
}

}  // namespace baton::kernels::reference
