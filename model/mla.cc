#include "model/mla.h"

#include "base/status_macros.h"

namespace baton::model {
namespace {

using kernels::Epilogue;
using kernels::KvPages;
using kernels::TensorView;

// [T, heads, d] as [T, heads * d].
TensorView Flat(const TensorView& view) {
  return view.Reshape({view.dim(0), view.dim(1) * view.dim(2)});
}

absl::Status ProjectQ(const PassContext& pass, const AttentionWeights& w) {
  kernels::Device& device = pass.device;
  const Activations& a = pass.a;
  if (!w.q.absent()) return Linear(device, {.x = a.normed, .w = w.q, .out = Flat(a.q)});
  BATON_RETURN_IF_ERROR(Linear(device, {.x = a.normed, .w = w.q_a, .out = a.q_a}));
  BATON_RETURN_IF_ERROR(RmsNorm(
      device, {.x = a.q_a, .weight = w.q_a_norm, .out = a.q_a, .eps = pass.config.rms_norm_eps}));
  return Linear(device, {.x = a.q_a, .w = w.q_b, .out = Flat(a.q)});
}

// Keys and values of each head are expanded from the latents: most work per key, least per query
// row.
absl::Status AttendExpanded(const PassContext& pass, const AttentionWeights& w,
                            const KvPages& pages) {
  return MlaPrefill(pass.device, {.q = pass.a.q,
                                  .kv_b = w.kv_b,
                                  .pages = pages,
                                  .batch = pass.batch,
                                  .out = pass.a.heads_out,
                                  .softmax_scale = pass.softmax_scale});
}

// W_UK moves to the query and W_UV behind the sum, so that a key costs one latent to read.
absl::Status AttendAbsorbed(const PassContext& pass, const AttentionWeights& w,
                            const KvPages& pages) {
  kernels::Device& device = pass.device;
  const Activations& a = pass.a;
  BATON_RETURN_IF_ERROR(MlaAbsorbQ(
      device, {.q = a.q, .kv_b = w.kv_b, .out = a.q_latent, .v = pass.config.v_head_dim}));
  BATON_RETURN_IF_ERROR(MlaDecode(device, {.q_lat = a.q_latent,
                                           .q = a.q,
                                           .pages = pages,
                                           .batch = pass.batch,
                                           .out = a.out_latent,
                                           .softmax_scale = pass.softmax_scale}));
  return MlaExpandV(device, {.o_lat = a.out_latent, .kv_b = w.kv_b, .out = a.heads_out});
}

}  // namespace

absl::Status WriteLatents(const PassContext& pass, const AttentionWeights& w,
                          const KvPages& pages) {
  const Activations& a = pass.a;
  BATON_RETURN_IF_ERROR(ProjectQ(pass, w));
  BATON_RETURN_IF_ERROR(Linear(pass.device, {.x = a.normed, .w = w.kv_a, .out = a.kv_a}));
  return RopeAndPage(pass.device, {.q = a.q,
                                   .kv_a = a.kv_a,
                                   .kv_norm = w.kv_a_norm,
                                   .cos = pass.cos,
                                   .sin = pass.sin,
                                   .positions = a.positions,
                                   .slots = a.slots,
                                   .pages = pages,
                                   .eps = pass.config.rms_norm_eps});
}

absl::Status Attend(const PassContext& pass, const AttentionWeights& w, const KvPages& pages) {
  const Activations& a = pass.a;
  BATON_RETURN_IF_ERROR(pass.form == scheduler::Form::kPrefill ? AttendExpanded(pass, w, pages)
                                                               : AttendAbsorbed(pass, w, pages));
  return Linear(pass.device,
                {.x = Flat(a.heads_out), .w = w.o, .out = a.hidden, .epilogue = Epilogue::kAdd});
}

}  // namespace baton::model
