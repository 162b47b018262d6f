#include "model/moe.h"

#include "base/status_macros.h"

namespace baton::model {
namespace {

using kernels::Epilogue;

absl::Status ChooseExperts(const PassContext& pass, const MoeWeights& w) {
  const ModelConfig& c = pass.config;
  const Activations& a = pass.a;
  BATON_RETURN_IF_ERROR(MoeGate(pass.device, {.x = a.normed,
                                              .gate = w.gate,
                                              .bias = w.bias,
                                              .score = c.scoring,
                                              .group_score = c.group_score,
                                              .n_group = c.expert_groups,
                                              .topk_group = c.groups_per_token,
                                              .top_k = c.experts_per_token,
                                              .normalize = c.normalize_weights,
                                              .scale = c.routed_scaling_factor,
                                              .experts = a.experts,
                                              .weights = a.expert_weights}));
  return MoePermute(pass.device, {.experts = a.experts,
                                  .offsets = a.expert_offsets,
                                  .row_tokens = a.row_tokens,
                                  .rows = a.expert_rows});
}

absl::Status RunExperts(const PassContext& pass, const MoeWeights& w) {
  const Activations& a = pass.a;
  BATON_RETURN_IF_ERROR(GroupedLinear(pass.device, {.x = a.normed,
                                                    .row_index = a.row_tokens,
                                                    .offsets = a.expert_offsets,
                                                    .w = w.expert_gate,
                                                    .w2 = w.expert_up,
                                                    .out = a.expert_inner,
                                                    .epilogue = Epilogue::kSiluMul}));
  return GroupedLinear(
      pass.device,
      {.x = a.expert_inner, .offsets = a.expert_offsets, .w = w.expert_down, .out = a.expert_out});
}

absl::Status RunShared(const PassContext& pass, const MlpWeights& w) {
  const Activations& a = pass.a;
  BATON_RETURN_IF_ERROR(Linear(pass.device, {.x = a.normed,
                                             .w = w.gate,
                                             .w2 = w.up,
                                             .out = a.shared_inner,
                                             .epilogue = Epilogue::kSiluMul}));
  return Linear(pass.device, {.x = a.shared_inner, .w = w.down, .out = a.shared_out});
}

}  // namespace

absl::Status RunMlp(const PassContext& pass, const MlpWeights& w) {
  const Activations& a = pass.a;
  BATON_RETURN_IF_ERROR(Linear(pass.device, {.x = a.normed,
                                             .w = w.gate,
                                             .w2 = w.up,
                                             .out = a.mlp_inner,
                                             .epilogue = Epilogue::kSiluMul}));
  return Linear(pass.device,
                {.x = a.mlp_inner, .w = w.down, .out = a.hidden, .epilogue = Epilogue::kAdd});
}

absl::Status RunMoe(const PassContext& pass, const MoeWeights& w) {
  const Activations& a = pass.a;
  BATON_RETURN_IF_ERROR(ChooseExperts(pass, w));
  BATON_RETURN_IF_ERROR(RunExperts(pass, w));
  if (pass.config.shared_experts > 0) BATON_RETURN_IF_ERROR(RunShared(pass, w.shared));
  return MoeCombine(pass.device, {.y = a.expert_out,
                                  .rows = a.expert_rows,
                                  .experts = a.experts,
                                  .weights = a.expert_weights,
                                  .shared = a.shared_out,
                                  .accumulate = true,
                                  .out = a.hidden});
}

}  // namespace baton::model
