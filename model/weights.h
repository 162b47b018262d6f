#ifndef BATON_MODEL_WEIGHTS_H_
#define BATON_MODEL_WEIGHTS_H_

// Typed views of a checkpoint's tensors, layer by layer, in the words of the forward pass.
// Everything points into the checkpoint's mapping; the one exception are selection biases stored in
// BF16, which are widened once. Immutable.

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "model/checkpoint.h"
#include "model/config.h"

namespace baton::model {

// down(silu(gate x) * up x)
struct MlpWeights {
  kernels::Weight gate;  // [inner, H]
  kernels::Weight up;    // [inner, H]
  kernels::Weight down;  // [H, inner]
};

struct AttentionWeights {
  kernels::Weight q;              // [heads * (nope + rope), H]; absent with a q_lora_rank
  kernels::Weight q_a;            // [q_lora, H]; absent without
  kernels::TensorView q_a_norm;   // [q_lora]; absent without
  kernels::Weight q_b;            // [heads * (nope + rope), q_lora]; absent without
  kernels::Weight kv_a;           // [kv_lora + rope, H]
  kernels::TensorView kv_a_norm;  // [kv_lora]
  kernels::Weight kv_b;           // [heads * (nope + v), kv_lora]
  kernels::Weight o;              // [H, heads * v]
};

struct MoeWeights {
  kernels::TensorView gate;                  // [experts, H]
  kernels::TensorView bias;                  // F32 [experts]; absent without a selection bias
  std::vector<kernels::Weight> expert_gate;  // one for each expert, shapes as in MlpWeights
  std::vector<kernels::Weight> expert_up;
  std::vector<kernels::Weight> expert_down;
  MlpWeights shared;  // absent views without shared experts
};

struct LayerWeights {
  kernels::TensorView input_norm;      // [H], before attention
  kernels::TensorView post_attn_norm;  // [H], before the MLP or the experts
  AttentionWeights attention;
  MlpWeights mlp;  // dense layers only
  MoeWeights moe;  // the other layers only
};

struct Weights {
  kernels::TensorView embed;  // [V, H]
  std::vector<LayerWeights> layers;
  kernels::TensorView norm;                       // [H], before the head
  kernels::Weight head;                           // [V, H]
  std::vector<std::unique_ptr<float[]>> widened;  // what bias views may point to
  int32_t mtp_layers = 0;  // multi-token-prediction layers found complete; not bound, not run
};

// The same views; they point where those of `weights` do.
Weights ViewsOf(const Weights& weights);

// Finds and checks every tensor that `config` calls for. MTP layers may be left out of a checkpoint
// altogether; if they are there, they are checked too. INVALID_ARGUMENT lists every problem at
// once: missing tensors, wrong dtypes or shapes (expected, found, file), tensors that no layer
// wants.
absl::StatusOr<Weights> BindWeights(const ModelConfig& config, const Checkpoint& checkpoint);

}  // namespace baton::model

#endif  // BATON_MODEL_WEIGHTS_H_
