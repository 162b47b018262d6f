// Logits as one product, then per row a selection by repeated search: k and the number of groups
// are small.

#include <algorithm>
#include <limits>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rows.h"

namespace baton::kernels::cpu {
namespace {

constexpr float kDropped = -std::numeric_limits<float>::infinity();

// NaN scores (from NaN inputs) are never better than another; a row of them yields the lowest free
// ids.
int64_t Best(const float* scores, const uint8_t* taken, int64_t n) {
  int64_t best = -1;
  for (int64_t i = 0; i < n; ++i) {
    if (taken[i] == 0 && (best < 0 || scores[i] > scores[best])) best = i;
  }
  return best;
}

float GroupScoreOf(const float* scores, int64_t n, GroupScore rule) {
  float first = kDropped, second = kDropped;
  for (int64_t i = 0; i < n; ++i) {
    if (scores[i] > first) {
      second = first;
      first = scores[i];
    } else if (scores[i] > second) {
      second = scores[i];
    }
  }
  return rule == GroupScore::kSumOfTop2 && n > 1 ? first + second : first;
}

struct Buffers {
  float* biased;         // [E]
  float* group_scores;   // [E]
  uint8_t* taken;        // [E]: experts chosen or dropped with their group
  uint8_t* group_taken;  // [E]
};

void KeepBestGroups(const MoeGateArgs& args, int64_t experts, const Buffers& buffers) {
  const int64_t per_group = experts / args.n_group;
  for (int64_t g = 0; g < args.n_group; ++g) {
    buffers.group_scores[g] =
        GroupScoreOf(buffers.biased + g * per_group, per_group, args.group_score);
  }
  std::fill(buffers.taken, buffers.taken + experts, uint8_t{1});
  std::fill(buffers.group_taken, buffers.group_taken + args.n_group, uint8_t{0});
  for (int i = 0; i < args.topk_group; ++i) {
    const int64_t group = Best(buffers.group_scores, buffers.group_taken, args.n_group);
    buffers.group_taken[group] = 1;
    std::fill(buffers.taken + group * per_group, buffers.taken + (group + 1) * per_group,
              uint8_t{0});
  }
}

void ChooseRow(const MoeGateArgs& args, int64_t t, const float* scores, const Buffers& buffers) {
  const int64_t experts = args.gate.dim(0);
  std::copy(scores, scores + experts, buffers.biased);
  if (!args.bias.absent()) {
    const float* bias = args.bias.as<const float>();
    for (int64_t e = 0; e < experts; ++e) buffers.biased[e] += bias[e];
  }
  std::fill(buffers.taken, buffers.taken + experts, uint8_t{0});
  if (args.n_group > 1) KeepBestGroups(args, experts, buffers);
  int32_t* chosen = args.experts.row<int32_t>(t);
  float* weights = args.weights.row<float>(t);
  float sum = 0.0f;
  for (int c = 0; c < args.top_k; ++c) {
    const int64_t expert = Best(buffers.biased, buffers.taken, experts);
    buffers.taken[expert] = 1;
    chosen[c] = static_cast<int32_t>(expert);
    weights[c] = scores[expert];
    sum += scores[expert];
  }
  const float divisor = args.normalize ? sum + 1e-20f : 1.0f;
  for (int c = 0; c < args.top_k; ++c) weights[c] = weights[c] / divisor * args.scale;
  if (args.replicas.absent()) return;
  const uint32_t hash = args.row_hash.as<const uint32_t>()[t];
  for (int c = 0; c < args.top_k; ++c) {
    const uint32_t count = args.replica_count.as<const uint32_t>()[chosen[c]];
    args.physical.row<int32_t>(t)[c] = args.replicas.row<const int32_t>(chosen[c])[hash % count];
  }
}

}  // namespace

absl::Status MoeGate(Device& device, const MoeGateArgs& args) {
  const IsaLevel isa = device.isa();
  const int64_t rows = args.x.dim(0), experts = args.gate.dim(0);
  Scratch& scratch = device.scratch();
  scratch.Reset();
  const Weight gate{.w = args.gate};
  float* scores = scratch.Get<float>(rows * experts);
  const GemmJob job{.x = PrepareRows(device, args.x, args.gate.dtype),
                    .row_begin = 0,
                    .row_end = rows,
                    .w = &gate,
                    .n_begin = 0,
                    .n_end = experts,
                    .out = TensorView::Contiguous(scores, DType::kF32, {rows, experts})};
  RunGemm(device, absl::MakeConstSpan(&job, 1), Epilogue::kNone);
  const int threads = device.pool().threads();
  float* floats = scratch.Get<float>(2 * experts * threads);
  uint8_t* bytes = scratch.Get<uint8_t>(2 * experts * threads);
  ParallelFor(device, rows, experts * (args.top_k + 8),
              [&](int64_t begin, int64_t end, int thread) {
                const Buffers own{.biased = floats + 2 * experts * thread,
                                  .group_scores = floats + (2 * thread + 1) * experts,
                                  .taken = bytes + 2 * experts * thread,
                                  .group_taken = bytes + (2 * thread + 1) * experts};
                for (int64_t t = begin; t < end; ++t) {
                  float* row = scores + t * experts;
                  if (args.score == GateScore::kSigmoid) {
                    SigmoidRow(isa, row, experts);
                  } else {
                    SoftmaxRow(isa, row, experts);
                  }
                  ChooseRow(args, t, row, own);
                }
              });
  return absl::OkStatus();
}

}  // namespace baton::kernels::cpu
