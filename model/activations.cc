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

void PlaceAttention(const ModelConfig& c, const PassLimits& limits, Placer& placer,
                    Activations& a) {
  const DType act = limits.act;
  const int64_t own = ShareOf(limits.max_rows, 0, limits.row_ranks).stride;
  const int64_t all = own * limits.row_ranks;  // what AllGather fills: whole shares
  const int64_t heads = limits.heads > 0 ? limits.heads : c.heads;
  const bool split = limits.row_ranks > 1;
  if (c.q_lora_rank > 0) a.own_q_a = placer.Place(act, {own, c.q_lora_rank});
  a.own_kv_a = placer.Place(act, {own, c.latent_dim()});
  const TensorView q_source = c.q_lora_rank > 0 ? a.own_q_a : a.normed;
  a.q_a = split ? placer.Place(act, {all, q_source.dim(1)}) : q_source;
  a.kv_a = split ? placer.Place(act, {all, c.latent_dim()}) : a.own_kv_a;
  a.q = placer.Place(act, {limits.max_rows, heads, c.qk_head_dim()});
  a.q_latent = placer.Place(act, {limits.max_rows, heads, c.kv_lora_rank});
  a.out_latent = placer.Place(act, {limits.max_rows, heads, c.kv_lora_rank});
  a.heads_out = placer.Place(act, {limits.max_rows, heads, c.v_head_dim});
  if (split) a.received = placer.Place(act, {own * c.heads * c.v_head_dim});
  a.own_heads = split ? placer.Place(act, {own, c.heads, c.v_head_dim}) : a.heads_out;
}

// For the largest of these inputs.
CodeRoom PlaceCodes(std::initializer_list<TensorView> inputs, Placer& placer) {
  int64_t codes = 0, scales = 0;
  for (const TensorView& input : inputs) {
    if (input.absent()) continue;
    codes = std::max(codes, input.dim(0) * input.dim(1));
    scales = std::max(scales, input.dim(0) * ((input.dim(1) + 127) / 128));
  }
  return {.codes = placer.Place(DType::kF8E4M3, {codes}),
          .scales = placer.Place(DType::kF32, {scales})};
}

}  // namespace

Activations LayOutActivations(const ModelConfig& c, const PassLimits& limits, void* base,
                              int64_t& bytes) {
  const int64_t rows = limits.max_rows;
  const int64_t own = ShareOf(rows, 0, limits.row_ranks).stride;
  const int64_t hidden = c.hidden_size;
  const int64_t choices = c.experts_per_token;
  const DType act = limits.act;
  Placer placer(base);
  Activations a;
  a.ids = placer.Place(DType::kI32, {rows});
  a.positions = placer.Place(DType::kI32, {rows});
  a.slots = placer.Place(DType::kI64, {rows});
  a.query_start = placer.Place(DType::kI32, {rows + 2});  // of two parts of a pass together
  a.context_len = placer.Place(DType::kI32, {rows});
  a.page_table = placer.Place(DType::kI32, {rows * limits.max_sequence_pages});

  a.hidden = placer.Place(DType::kF32, {own, hidden});
  if (limits.row_ranks == 1) a.picked = placer.Place(DType::kF32, {own, hidden});
  a.normed = placer.Place(act, {own, hidden});
  PlaceAttention(c, limits, placer, a);

  const int64_t shared = c.shared_intermediate_size();
  const TensorView inner = placer.Place(act, {own, std::max<int64_t>(c.intermediate_size, shared)});
  a.mlp_inner = TensorView::Contiguous(inner.data, act, {own, c.intermediate_size});
  if (shared > 0) {
    a.shared_inner = TensorView::Contiguous(inner.data, act, {own, shared});
    a.shared_out = placer.Place(act, {own, hidden});
  }

  a.experts = placer.Place(DType::kI32, {own, choices});
  a.physical = placer.Place(DType::kI32, {own, choices});
  a.expert_weights = placer.Place(DType::kF32, {own, choices});
  a.expert_rows = placer.Place(DType::kI32, {own, choices});
  a.row_tokens = placer.Place(DType::kI32, {own * choices});
  a.expert_offsets = placer.Place(DType::kI32, {c.routed_experts + 1});
  a.expert_inner = placer.Place(act, {own * choices, c.moe_intermediate_size});
  a.expert_out = placer.Place(act, {own * choices, hidden});
  if (limits.fp8) {
    const TensorView heads = a.own_heads.Reshape({a.own_heads.dim(0), c.heads * c.v_head_dim});
    a.normed_codes = PlaceCodes({a.normed}, placer);
    a.codes = PlaceCodes({a.q_a, heads, a.mlp_inner, a.shared_inner, a.expert_inner}, placer);
  }

  if (limits.row_ranks > 1) {
    a.head_sent = placer.Place(DType::kF32, {limits.max_logit_rows, hidden});
    a.head_index = placer.Place(DType::kI32, {limits.max_logit_rows});
    a.head_rows = placer.Place(DType::kF32, {limits.max_logit_rows, hidden});
  }
  a.head_in = placer.Place(act, {limits.max_logit_rows, hidden});
  a.logits = placer.Place(DType::kF32, {limits.max_logit_rows, c.vocab_size});
  a.logit_mask = placer.Place(DType::kI32, {limits.max_logit_rows, (c.vocab_size + 31) / 32});
  bytes = placer.used();
  return a;
}

Activations Activations::ForRows(int64_t rows, const Share& own) const {
  Activations a = *this;
  for (TensorView* view : {&a.ids, &a.positions, &a.slots, &a.q_a, &a.kv_a, &a.q, &a.q_latent,
                           &a.out_latent, &a.heads_out}) {
    *view = FirstRows(*view, rows);
  }
  a.own_ids = a.ids.Slice(0, own.begin, own.end);
  a.own_positions = a.positions.Slice(0, own.begin, own.end);
  for (TensorView* view : {&a.hidden, &a.picked, &a.normed, &a.own_q_a, &a.own_kv_a, &a.own_heads,
                           &a.mlp_inner, &a.shared_inner, &a.shared_out, &a.experts, &a.physical,
                           &a.expert_weights, &a.expert_rows}) {
    *view = FirstRows(*view, own.size());
  }
  const int64_t choices = a.experts.dim(1);
  for (TensorView* view : {&a.row_tokens, &a.expert_inner, &a.expert_out}) {
    *view = FirstRows(*view, own.size() * choices);
  }
  return a;
}

Activations Activations::Behind(int64_t rows, int64_t sequences, int64_t page_entries) const {
  Activations a = *this;
  const auto skip = [](TensorView& view, int64_t count) {
    if (!view.absent()) view = view.Slice(0, count, view.dim(0));
  };
  for (TensorView* view : {&a.ids,
                           &a.positions,
                           &a.slots,
                           &a.hidden,
                           &a.picked,
                           &a.normed,
                           &a.own_q_a,
                           &a.own_kv_a,
                           &a.q_a,
                           &a.kv_a,
                           &a.q,
                           &a.q_latent,
                           &a.out_latent,
                           &a.heads_out,
                           &a.own_heads,
                           &a.mlp_inner,
                           &a.shared_inner,
                           &a.shared_out,
                           &a.experts,
                           &a.physical,
                           &a.expert_weights,
                           &a.expert_rows}) {
    skip(*view, rows);
  }
  skip(a.query_start, sequences + 1);
  skip(a.context_len, sequences);
  skip(a.page_table, page_entries);
  for (TensorView* view : {&a.received, &a.expert_inner, &a.expert_out}) *view = {};
  const int64_t choices = a.experts.dim(1);
  skip(a.row_tokens, rows * choices);
  return a;
}

}  // namespace baton::model
