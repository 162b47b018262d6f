#ifndef BATON_MODEL_LINEAR_INPUT_H_
#define BATON_MODEL_LINEAR_INPUT_H_

// What the products with FP8 weights read in a pass with fp8_activations: their rows rounded to
// E4M3, 128 values by one scale, as these models were trained. Each input is rounded once, however
// many products read it. Elsewhere, and for other weights, rows are read as they are.

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "model/activations.h"
#include "model/loaded_model.h"
#include "model/mla.h"

namespace baton::model {

struct LinearInput {
  kernels::TensorView x;
  kernels::TensorView scales;  // absent where x is not E4M3
};

// Whether products with this matrix can read rows in E4M3.
inline bool CanReadCodes(const kernels::Weight& weight) {
  return weight.w.dtype == kernels::DType::kF8E4M3 && weight.block_k == 128;
}

// [rows, columns] of the room.
LinearInput CodesIn(const CodeRoom& room, int64_t rows, int64_t columns);

// Whether those with the experts' do.
bool ExpertsReadCodes(const LoadedModel& model);

// Rounds a.normed for the products that follow until it changes. Does nothing in other passes.
absl::Status QuantizeNormed(const PassContext& pass);
// a.normed for a product with `weight`, behind QuantizeNormed.
LinearInput NormedFor(const PassContext& pass, const kernels::Weight& weight);
// Any other rows, until the next call.
absl::StatusOr<LinearInput> InputFor(const PassContext& pass, const kernels::TensorView& x,
                                     const kernels::Weight& weight);

}  // namespace baton::model

#endif  // BATON_MODEL_LINEAR_INPUT_H_
