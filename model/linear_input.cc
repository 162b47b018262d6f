#include "model/linear_input.h"

#include <vector>

#include "base/status_macros.h"

namespace baton::model {
namespace {

bool ReadsCodes(const PassContext& pass, const kernels::Weight& weight) {
  return !pass.a.codes.codes.absent() && CanReadCodes(weight);
}

absl::Status Quantize(const PassContext& pass, const kernels::TensorView& x,
                      const LinearInput& codes) {
  return QuantizeFp8(pass.device, {.x = x, .out = codes.x, .scales = codes.scales});
}

}  // namespace

LinearInput CodesIn(const CodeRoom& room, int64_t rows, int64_t columns) {
  const int64_t groups = (columns + 127) / 128;
  return {.x = room.codes.Slice(0, 0, rows * columns).Reshape({rows, columns}),
          .scales = room.scales.Slice(0, 0, rows * groups).Reshape({rows, groups})};
}

bool ExpertsReadCodes(const LoadedModel& model) {
  const size_t first = static_cast<size_t>(model.config.dense_layers);
  if (first >= model.weights.layers.size()) return false;
  const std::vector<kernels::Weight>& gates = model.weights.layers[first].moe.expert_gate;
  return !gates.empty() && CanReadCodes(gates[0]);
}

absl::Status QuantizeNormed(const PassContext& pass) {
  const kernels::TensorView& normed = pass.a.normed;
  if (pass.a.normed_codes.codes.absent()) return absl::OkStatus();
  return Quantize(pass, normed, CodesIn(pass.a.normed_codes, normed.dim(0), normed.dim(1)));
}

LinearInput NormedFor(const PassContext& pass, const kernels::Weight& weight) {
  const kernels::TensorView& normed = pass.a.normed;
  if (!ReadsCodes(pass, weight)) return {.x = normed, .scales = {}};
  return CodesIn(pass.a.normed_codes, normed.dim(0), normed.dim(1));
}

absl::StatusOr<LinearInput> InputFor(const PassContext& pass, const kernels::TensorView& x,
                                     const kernels::Weight& weight) {
  if (!ReadsCodes(pass, weight)) return LinearInput{.x = x, .scales = {}};
  const LinearInput codes = CodesIn(pass.a.codes, x.dim(0), x.dim(1));
  BATON_RETURN_IF_ERROR(Quantize(pass, x, codes));
  return codes;
}

}  // namespace baton::model
