// The router's choice. Candidates are ordered by score, best first, ties by id, and taken one after
// the other as the best behind the last one taken; so nothing needs to be marked.

#include "kernels/cuda/device.h"
#include "kernels/cuda/moe.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kNoId = 0x7FFFFFFF;

struct Candidate {
  float score = -INFINITY;
  int id = kNoId;  // kNoId: none
};

BATON_DEVICE bool Before(const Candidate& a, const Candidate& b) {
  return a.score > b.score || (a.score == b.score && a.id < b.id);
}

// A NaN ranks with the worst.
BATON_DEVICE float Rankable(float score) { return score == score ? score : -INFINITY; }

BATON_DEVICE Candidate BestOfWarp(Candidate best) {
#pragma unroll
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
    const Candidate other{.score = ShuffleXor(best.score, mask), .id = ShuffleXor(best.id, mask)};
    if (Before(other, best)) best = other;
  }
  return best;
}

// Of the candidates lane, lane + 32, ... the best that stands behind `last`.
template <typename ScoreOf>
BATON_DEVICE Candidate BestOfLane(int count, const Candidate& last, const ScoreOf& score_of) {
  Candidate best;
  for (int id = Lane(); id < count; id += kWarpSize) {
    Candidate candidate;
    if (!score_of(id, candidate.score)) continue;
    candidate.id = id;
    if (Before(last, candidate) && Before(candidate, best)) best = candidate;
  }
  return best;
}

// Stands before all candidates.
BATON_DEVICE Candidate Start() { return {.score = INFINITY, .id = -1}; }

// Logits to scores, each lane its own: lane, lane + 32, ...
BATON_DEVICE void ScoreRow(const MoeGateLaunch& args, float* scores) {
  constexpr float kLog2E = 1.44269504f;
  if (args.sigmoid) {
    for (int e = Lane(); e < args.experts; e += kWarpSize) {
      scores[e] = 1.0f / (1.0f + Exp2(-scores[e] * kLog2E));
    }
    return;
  }
  float largest = -INFINITY, sum = 0.0f;
  for (int e = Lane(); e < args.experts; e += kWarpSize) largest = fmaxf(largest, scores[e]);
  largest = WarpMax(largest);
  for (int e = Lane(); e < args.experts; e += kWarpSize) {
    scores[e] = Exp2((scores[e] - largest) * kLog2E);
    sum += scores[e];
  }
  sum = WarpSum(sum);
  for (int e = Lane(); e < args.experts; e += kWarpSize) scores[e] /= sum;
}

BATON_DEVICE float BiasedScore(const MoeGateLaunch& args, const float* scores, int expert) {
  return Rankable(scores[expert] + (args.bias == nullptr ? 0.0f : args.bias[expert]));
}

// The last of the groups to be kept: those before it are kept too.
BATON_DEVICE Candidate LastGroup(const MoeGateLaunch& args, const float* scores, float* groups) {
  const int members = args.experts / args.groups;
  for (int g = Lane(); g < args.groups; g += kWarpSize) {
    float first = -INFINITY, second = -INFINITY;
    for (int e = g * members; e < (g + 1) * members; ++e) {
      const float score = BiasedScore(args, scores, e);
      if (score > first) {
        second = first;
        first = score;
      } else if (score > second) {
        second = score;
      }
    }
    groups[g] = args.sum_of_top2 && members > 1 ? Rankable(first + second) : first;
  }
  SyncWarp();
  Candidate last = Start();
  for (int i = 0; i < args.top_groups; ++i) {
    last = BestOfWarp(BestOfLane(args.groups, last, [&](int g, float& score) {
      score = groups[g];
      return true;
    }));
  }
  return last;
}

BATON_KERNEL(kThreads) MoeGateKernel(const MoeGateLaunch args) {
  const int row = BlockX() * kWarps + Warp();
  if (row >= args.rows) return;  // the whole warp
  float* const scores = args.scores + int64_t{row} * args.experts;
  ScoreRow(args, scores);
  SyncWarp();
  float* const groups = args.group_scores + int64_t{row} * args.groups;
  const int members = args.experts / args.groups;
  const Candidate last_group = args.groups > 1 ? LastGroup(args, scores, groups) : Candidate{};
  const auto score_of = [&](int expert, float& score) {
    if (args.groups > 1) {
      const int group = expert / members;
      if (Before(last_group, {.score = groups[group], .id = group})) return false;
    }
    score = BiasedScore(args, scores, expert);
    return true;
  };
  Candidate mine = BestOfLane(args.experts, Start(), score_of);
  int32_t* const chosen = args.chosen + int64_t{row} * args.top_k;  // c is lane c % 32's
  float sum = 0.0f;
  for (int c = 0; c < args.top_k; ++c) {
    const Candidate best = BestOfWarp(mine);
    if (mine.id == best.id) mine = BestOfLane(args.experts, best, score_of);
    if (Lane() == c % kWarpSize) chosen[c] = best.id;
    sum += scores[best.id];
  }
  const float divisor = args.normalize ? sum + 1e-20f : 1.0f;
  for (int c = Lane(); c < args.top_k; c += kWarpSize) {
    const int64_t at = int64_t{row} * args.top_k + c;
    const int expert = chosen[c];
    args.weights[at] = scores[expert] / divisor * args.scale;
    if (args.replicas == nullptr) continue;
    const uint32_t pick = args.row_hash[row] % args.replica_count[expert];
    args.physical[at] = args.replicas[int64_t{expert} * args.max_replicas + pick];
  }
}

}  // namespace

cudaError_t LaunchMoeGate(const MoeGateLaunch& args, cudaStream_t stream) {
  return Launch(MoeGateKernel,
                {.grid = dim3(static_cast<unsigned>((args.rows + kWarps - 1) / kWarps)),
                 .threads = kThreads,
                 .stream = stream},
                args);
}

}  // namespace baton::kernels::cuda
