// The host's side of routing, grouping by expert and the weighted sum.

#include "base/status_macros.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_views.h"
#include "kernels/cuda/moe.h"
#include "kernels/cuda/views.h"

namespace baton::kernels::cuda {

absl::Status MoeGate(Device& device, const MoeGateArgs& args) {
  CudaState& state = CudaState::Begin(device);
  const int64_t rows = args.x.dim(0), experts = args.gate.dim(0);
  BATON_ASSIGN_OR_RETURN(float* const scores, state.Scratch<float>(rows * experts));
  BATON_ASSIGN_OR_RETURN(float* const groups, state.Scratch<float>(rows * args.n_group));
  BATON_RETURN_IF_ERROR(state.Finish(LaunchGemm({.x = RowsOf(args.x),
                                                 .w = GemmWeightOf({.w = args.gate}),
                                                 .out = {.data = scores, .stride = experts},
                                                 .rows = static_cast<int>(rows),
                                                 .n = static_cast<int>(experts),
                                                 .k = static_cast<int>(args.x.dim(1)),
                                                 .type = GemmTypeOf(args.gate.dtype)},
                                                state.stream()),
                                     "moe_gate"));
  MoeGateLaunch choice{.scores = scores,
                       .group_scores = groups,
                       .bias = args.bias.absent() ? nullptr : args.bias.as<const float>(),
                       .rows = static_cast<int>(rows),
                       .experts = static_cast<int>(experts),
                       .groups = args.n_group,
                       .top_groups = args.topk_group,
                       .top_k = args.top_k,
                       .sigmoid = args.score == GateScore::kSigmoid,
                       .sum_of_top2 = args.group_score == GroupScore::kSumOfTop2,
                       .normalize = args.normalize,
                       .scale = args.scale,
                       .chosen = args.experts.as<int32_t>(),
                       .weights = args.weights.as<float>()};
  if (!args.replicas.absent()) {
    choice.replicas = args.replicas.as<const int32_t>();
    choice.replica_count = args.replica_count.as<const uint32_t>();
    choice.row_hash = args.row_hash.as<const uint32_t>();
    choice.physical = args.physical.as<int32_t>();
    choice.max_replicas = static_cast<int>(args.replicas.dim(1));
  }
  return state.Finish(LaunchMoeGate(choice, state.stream()), "moe_gate");
}

absl::Status MoePermute(Device& device, const MoePermuteArgs& args) {
  CudaState& state = CudaState::Begin(device);
  return state.Finish(LaunchMoePermute({.experts = args.experts.as<const int32_t>(),
                                        .offsets = args.offsets.as<int32_t>(),
                                        .row_tokens = args.row_tokens.as<int32_t>(),
                                        .rows = args.rows.as<int32_t>(),
                                        .room = static_cast<int>(args.row_tokens.dim(0)),
                                        .pairs = static_cast<int>(args.experts.elements()),
                                        .top_k = static_cast<int>(args.experts.dim(1)),
                                        .first_expert = args.first_expert,
                                        .local = static_cast<int>(args.offsets.dim(0)) - 1},
                                       state.stream()),
                      "moe_permute");
}

absl::Status MoeCombine(Device& device, const MoeCombineArgs& args) {
  if (args.out.dim(1) == 0) return absl::OkStatus();
  CudaState& state = CudaState::Begin(device);
  return state.Finish(LaunchMoeCombine({.y = RowsOf(args.y),
                                        .rows = args.rows.as<const int32_t>(),
                                        .experts = args.experts.as<const int32_t>(),
                                        .weights = args.weights.as<const float>(),
                                        .shared = RowsOf(args.shared),
                                        .out = RowsOf(args.out),
                                        .tokens = static_cast<int>(args.out.dim(0)),
                                        .hidden = static_cast<int>(args.out.dim(1)),
                                        .top_k = static_cast<int>(args.rows.dim(1)),
                                        .accumulate = args.accumulate},
                                       state.stream()),
                      "moe_combine");
}

}  // namespace baton::kernels::cuda
