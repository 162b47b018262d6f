#include "model/activations.h"

#include <algorithm>

namespace baton::model {
namespace {

using kernels::DType;
using kernels::TensorView;

// Hands out consecutive 64-byte aligned arrays.
class Placer {
 public:
  explicit Placer(void* base) : base_(static_cast<uint8_t*>(base)) {}

  TensorView Place(DType dtype, std::initializer_list<int64_t> shape) {
    // Null arithmetic is undefined, so a measuring pass places everything at null.
    void* data = base_ == nullptr ? nullptr : base_ + used_;
    const TensorView view = TensorView::Contiguous(data, dtype, shape);
    used_ += (static_cast<int64_t>(view.bytes()) + 63) / 64 * 64;
    return view;
  }
  int64_t used() const { return used_; }

 private:
  uint8_t* const base_;
  int64_t used_ = 0;
};

TensorView FirstRows(const TensorView& view, int64_t rows) {
  return view.absent() ? view : view.Slice(0, 0, rows);
}

}  // namespace

Activations LayOutActivations(const ModelConfig& c, const PassLimits& limits, void* base,
                              int64_t& bytes) {
  const int64_t rows = limits.max_rows;
  const int64_t hidden = c.hidden_size;
  const int64_t choices = c.experts_per_token;
  const DType act = limits.act;
  Placer placer(base);
  Activations a;
  a.ids = placer.Place(DType::kI32, {rows});
  a.positions = placer.Place(DType::kI32, {rows});
  a.slots = placer.Place(DType::kI64, {rows});
  a.query_start = placer.Place(DType::kI32, {rows + 1});
  a.context_len = placer.Place(DType::kI32, {rows});
  a.page_table = placer.Place(DType::kI32, {rows * limits.max_sequence_pages});

  a.hidden = placer.Place(DType::kF32, {rows, hidden});
  a.normed = placer.Place(act, {rows, hidden});

  if (c.q_lora_rank > 0) a.q_a = placer.Place(act, {rows, c.q_lora_rank});
  a.q = placer.Place(act, {rows, c.heads, c.qk_head_dim()});
  a.kv_a = placer.Place(act, {rows, c.latent_dim()});
  a.q_latent = placer.Place(act, {rows, c.heads, c.kv_lora_rank});
  a.out_latent = placer.Place(act, {rows, c.heads, c.kv_lora_rank});
  a.heads_out = placer.Place(act, {rows, c.heads, c.v_head_dim});

  const int64_t shared = c.shared_intermediate_size();
  const TensorView inner =
      placer.Place(act, {rows, std::max<int64_t>(c.intermediate_size, shared)});
  a.mlp_inner = TensorView::Contiguous(inner.data, act, {rows, c.intermediate_size});
  if (shared > 0) {
    a.shared_inner = TensorView::Contiguous(inner.data, act, {rows, shared});
    a.shared_out = placer.Place(act, {rows, hidden});
  }

  a.experts = placer.Place(DType::kI32, {rows, choices});
  a.expert_weights = placer.Place(DType::kF32, {rows, choices});
  a.expert_rows = placer.Place(DType::kI32, {rows, choices});
  a.row_tokens = placer.Place(DType::kI32, {rows * choices});
  a.expert_offsets = placer.Place(DType::kI32, {c.routed_experts + 1});
  a.expert_inner = placer.Place(act, {rows * choices, c.moe_intermediate_size});
  a.expert_out = placer.Place(act, {rows * choices, hidden});

  a.head_in = placer.Place(act, {limits.max_logit_rows, hidden});
  a.logits = placer.Place(DType::kF32, {limits.max_logit_rows, c.vocab_size});
  a.logit_mask = placer.Place(DType::kI32, {limits.max_logit_rows, (c.vocab_size + 31) / 32});
  bytes = placer.used();
  return a;
}

Activations Activations::ForRows(int64_t rows) const {
  Activations a = *this;
  for (TensorView* view :
       {&a.ids, &a.positions, &a.slots, &a.hidden, &a.normed, &a.q_a, &a.q, &a.kv_a, &a.q_latent,
        &a.out_latent, &a.heads_out, &a.mlp_inner, &a.shared_inner, &a.shared_out, &a.experts,
        &a.expert_weights, &a.expert_rows}) {
    *view = FirstRows(*view, rows);
  }
  const int64_t choices = a.experts.dim(1);
  for (TensorView* view : {&a.row_tokens, &a.expert_inner, &a.expert_out}) {
    *view = FirstRows(*view, rows * choices);
  }
  return a;
}

}  // namespace baton::model
