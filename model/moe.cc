#include "model/moe.h"

#include <algorithm>
#include <span>
#include <vector>

#include "base/status_macros.h"
#include "model/linear_input.h"
#include "scheduler/expert_routing.h"

namespace baton::model {
namespace {

using kernels::Epilogue;

// `slots` may be null: only logical experts are chosen then.
absl::Status ChooseExperts(const PassContext& pass, const MoeWeights& w,
                           const ExpertTables::Layer* slots) {
  const ModelConfig& c = pass.config;
  const Activations& a = pass.a;
  kernels::MoeGateArgs args{.x = a.normed,
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
                            .weights = a.expert_weights};
  if (slots != nullptr) {
    // All replicas of an expert give the same bits; positions spread the rows over them.
    args.replicas = slots->replicas;
    args.replica_count = slots->replica_count;
    args.row_hash = a.own_positions;
    args.physical = a.physical;
  }
  return MoeGate(pass.device, args);
}

absl::Status RunExperts(const PassContext& pass, const MoeWeights& w) {
  const Activations& a = pass.a;
  BATON_RETURN_IF_ERROR(MoePermute(pass.device, {.experts = a.experts,
                                                 .offsets = a.expert_offsets,
                                                 .row_tokens = a.row_tokens,
                                                 .rows = a.expert_rows}));
  const LinearInput normed = NormedFor(pass, w.expert_gate[0]);
  BATON_RETURN_IF_ERROR(GroupedLinear(pass.device, {.x = normed.x,
                                                    .x_scales = normed.scales,
                                                    .row_index = a.row_tokens,
                                                    .offsets = a.expert_offsets,
                                                    .w = w.expert_gate,
                                                    .w2 = w.expert_up,
                                                    .out = a.expert_inner,
                                                    .epilogue = Epilogue::kSiluMul}));
  BATON_ASSIGN_OR_RETURN(const LinearInput inner, InputFor(pass, a.expert_inner, w.expert_down[0]));
  return GroupedLinear(pass.device, {.x = inner.x,
                                     .x_scales = inner.scales,
                                     .offsets = a.expert_offsets,
                                     .w = w.expert_down,
                                     .out = a.expert_out});
}

// Fills a.physical: the choices of all ranks' rows, rank after rank, are split over the replicas
// of each expert, and this rank's are assigned what is theirs of the split.
absl::Status SpreadOverReplicas(const PassContext& pass, const scheduler::ActiveExperts& active,
                                int32_t layer) {
  const scheduler::ExpertPlacement& placement = *active.placement;
  const size_t experts = static_cast<size_t>(placement.experts());
  const size_t ranks = static_cast<size_t>(pass.group.ranks());
  const size_t pairs = static_cast<size_t>(pass.a.experts.elements());
  std::span<const int32_t> choices(pass.a.experts.as<const int32_t>(), pairs);
  std::span<int32_t> physical(pass.a.physical.as<int32_t>(), pairs);
  std::vector<int32_t> staged_choices, staged_physical;  // where the host cannot read them
  if (!pass.device.host_memory()) {
    staged_choices.resize(pairs);
    staged_physical.resize(pairs);
    BATON_RETURN_IF_ERROR(pass.group.Settle());
    BATON_RETURN_IF_ERROR(
        pass.device.CopyToHost(staged_choices.data(), choices.data(), choices.size_bytes()));
    choices = staged_choices;
    physical = staged_physical;
  }
  std::vector<int32_t> mine(experts, 0), all(experts * ranks), total(experts, 0), before(total);
  for (const int32_t expert : choices) ++mine[static_cast<size_t>(expert)];
  BATON_RETURN_IF_ERROR(pass.group.collectives->AllGather(
      std::as_bytes(std::span(mine)), std::as_writable_bytes(std::span(all)), pass.group.timeout));
  for (size_t rank = 0; rank < ranks; ++rank) {
    for (size_t e = 0; e < experts; ++e) {
      total[e] += all[rank * experts + e];
      if (static_cast<int32_t>(rank) < pass.group.rank()) before[e] += all[rank * experts + e];
    }
  }
  std::vector<int32_t> split = scheduler::SplitTokens(placement, layer, active.live, total);
  for (size_t e = 0; e < experts; ++e) {
    // Of the expert's choices [0, total) this rank has [before, before + mine).
    int32_t first = 0;
    for (const int32_t slot : placement.Replicas(layer, static_cast<int32_t>(e))) {
      int32_t& tokens = split[static_cast<size_t>(slot)];
      const int32_t begin = std::max(first, before[e]);
      const int32_t end = std::min(first + tokens, before[e] + mine[e]);
      first += tokens;
      tokens = std::max(end - begin, 0);
    }
  }
  scheduler::AssignSlots(placement, layer, split, choices, {physical.data(), physical.size()});
  if (pass.device.host_memory()) return absl::OkStatus();
  return pass.device.CopyToDevice(pass.a.physical.data, physical.data(), physical.size_bytes());
}

// This rank's experts on the rows that came here.
absl::Status RunSlots(const PassContext& pass, const ExpertTables::Layer& slots,
                      const ExpertExchange& received) {
  BATON_RETURN_IF_ERROR(MoePermute(pass.device, {.experts = received.slots(),
                                                 .offsets = received.offsets(),
                                                 .row_tokens = received.row_tokens(),
                                                 .rows = received.pair_rows()}));
  if (received.pairs() == 0) return absl::OkStatus();
  BATON_RETURN_IF_ERROR(GroupedLinear(pass.device, {.x = received.x(),
                                                    .x_scales = received.x_scales(),
                                                    .row_index = received.row_tokens(),
                                                    .offsets = received.offsets(),
                                                    .w = slots.gate,
                                                    .w2 = slots.up,
                                                    .out = received.inner(),
                                                    .epilogue = Epilogue::kSiluMul}));
  kernels::TensorView inner = received.inner(), scales;
  if (received.fp8()) {
    inner = received.inner_codes();
    scales = received.inner_scales();
    // Room behind the last pair holds nothing.
    BATON_RETURN_IF_ERROR(QuantizeFp8(pass.device, {.x = received.inner(),
                                                    .out = inner,
                                                    .scales = scales,
                                                    .row_count = received.pair_count()}));
  }
  return GroupedLinear(pass.device, {.x = inner,
                                     .x_scales = scales,
                                     .offsets = received.offsets(),
                                     .w = slots.down,
                                     .out = received.outputs()});
}

absl::Status GateAndUp(const PassContext& pass, const MlpWeights& w,
                       const kernels::TensorView& inner) {
  const LinearInput normed = NormedFor(pass, w.gate);
  return Linear(pass.device, {.x = normed.x,
                              .x_scales = normed.scales,
                              .w = w.gate,
                              .w2 = w.up,
                              .out = inner,
                              .epilogue = Epilogue::kSiluMul});
}

absl::Status RunShared(const PassContext& pass, const MlpWeights& w) {
  const Activations& a = pass.a;
  BATON_RETURN_IF_ERROR(GateAndUp(pass, w, a.shared_inner));
  BATON_ASSIGN_OR_RETURN(const LinearInput inner, InputFor(pass, a.shared_inner, w.down));
  return Linear(pass.device,
                {.x = inner.x, .x_scales = inner.scales, .w = w.down, .out = a.shared_out});
}

// The sum over the chosen experts, whose outputs are rows `rows` of y, and the shared ones.
absl::Status AddToHidden(const PassContext& pass, const kernels::TensorView& y,
                         const kernels::TensorView& rows) {
  const Activations& a = pass.a;
  return MoeCombine(pass.device, {.y = y,
                                  .rows = rows,
                                  .experts = a.experts,
                                  .weights = a.expert_weights,
                                  .shared = a.shared_out,
                                  .accumulate = true,
                                  .out = a.hidden});
}

}  // namespace

absl::Status RunMlp(const PassContext& pass, const MlpWeights& w) {
  const Activations& a = pass.a;
  BATON_RETURN_IF_ERROR(QuantizeNormed(pass));
  BATON_RETURN_IF_ERROR(GateAndUp(pass, w, a.mlp_inner));
  BATON_ASSIGN_OR_RETURN(const LinearInput inner, InputFor(pass, a.mlp_inner, w.down));
  return Linear(pass.device, {.x = inner.x,
                              .x_scales = inner.scales,
                              .w = w.down,
                              .out = a.hidden,
                              .epilogue = Epilogue::kAdd});
}

absl::Status RunMoe(const PassContext& pass, const MoeWeights& w) {
  const Activations& a = pass.a;
  BATON_RETURN_IF_ERROR(ChooseExperts(pass, w, nullptr));
  BATON_RETURN_IF_ERROR(QuantizeNormed(pass));
  BATON_RETURN_IF_ERROR(RunExperts(pass, w));
  if (pass.config.shared_experts > 0) BATON_RETURN_IF_ERROR(RunShared(pass, w.shared));
  return AddToHidden(pass, a.expert_out, a.expert_rows);
}

absl::Status BeginMoeInGroup(const PassContext& pass, const MoeWeights& w,
                             const ExpertTables& tables, int32_t layer, ExpertExchange& exchange) {
  const Activations& a = pass.a;
  const ExpertTables::Layer& slots = tables.layer(layer);
  const bool spread = pass.group.tensor() && slots.replicas.dim(1) > 1;
  BATON_RETURN_IF_ERROR(ChooseExperts(pass, w, spread ? nullptr : &slots));
  if (spread) BATON_RETURN_IF_ERROR(SpreadOverReplicas(pass, tables.active(), layer));
  BATON_RETURN_IF_ERROR(QuantizeNormed(pass));
  const LinearInput rows = exchange.fp8()
                               ? CodesIn(a.normed_codes, a.normed.dim(0), a.normed.dim(1))
                               : LinearInput{.x = a.normed, .scales = {}};
  BATON_RETURN_IF_ERROR(exchange.BeginDispatch(rows.x, rows.scales, a.physical,
                                               static_cast<int32_t>(slots.gate.size())));
  return pass.config.shared_experts > 0 ? RunShared(pass, w.shared) : absl::OkStatus();
}

absl::Status RunMoeInGroup(const PassContext& pass, const ExpertTables& tables, int32_t layer,
                           ExpertExchange& exchange) {
  BATON_RETURN_IF_ERROR(exchange.EndDispatch());
  BATON_RETURN_IF_ERROR(RunSlots(pass, tables.layer(layer), exchange));
  return exchange.BeginReturn();
}

absl::Status EndMoeInGroup(const PassContext& pass, ExpertExchange& exchange) {
  BATON_RETURN_IF_ERROR(exchange.EndReturn());
  return AddToHidden(pass, exchange.home_outputs(), exchange.home_rows());
}

}  // namespace baton::model
