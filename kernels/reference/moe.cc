// Routing and the weighted sum of the experts' outputs.

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/reference/reference_ops.h"
#include "kernels/reference/values.h"

namespace baton::kernels::reference {
namespace {

// Indices of `scores`, best first, ties to the lowest.
std::vector<int64_t> Ranked(const std::vector<double>& scores) {
  std::vector<int64_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
  });
  return order;
}

std::vector<double> Scores(const MoeGateArgs& args, int64_t t) {
  const Weight gate{.w = args.gate};
  std::vector<double> scores;
  for (int64_t e = 0; e < args.gate.dim(0); ++e) scores.push_back(Dot(args.x, t, gate, e));
  if (args.score == GateScore::kSigmoid) {
    for (double& s : scores) s = 1.0 / (1.0 + std::exp(-s));
    return scores;
  }
  const double best = *std::max_element(scores.begin(), scores.end());
  double sum = 0.0;
  for (double& s : scores) sum += s = std::exp(s - best);
  for (double& s : scores) s /= sum;
  return scores;
}

// Sets the scores of the groups that are not kept to -inf.
void DropGroups(const MoeGateArgs& args, std::vector<double>& biased) {
  const size_t per_group = biased.size() / static_cast<size_t>(args.n_group);
  std::vector<double> group_scores;
  for (size_t g = 0; g < static_cast<size_t>(args.n_group); ++g) {
    std::vector<double> members(biased.begin() + static_cast<int64_t>(g * per_group),
                                biased.begin() + static_cast<int64_t>((g + 1) * per_group));
    std::sort(members.begin(), members.end(), std::greater<>());
    const bool two = args.group_score == GroupScore::kSumOfTop2 && per_group > 1;
    group_scores.push_back(two ? members[0] + members[1] : members[0]);
  }
  const std::vector<int64_t> order = Ranked(group_scores);
  for (size_t i = static_cast<size_t>(args.topk_group); i < order.size(); ++i) {
    const size_t begin = static_cast<size_t>(order[i]) * per_group;
    for (size_t e = begin; e < begin + per_group; ++e) {
      biased[e] = -std::numeric_limits<double>::infinity();
    }
  }
}

}  // namespace

absl::Status MoeGate(Device&, const MoeGateArgs& args) {
  for (int64_t t = 0; t < args.x.dim(0); ++t) {
    const std::vector<double> scores = Scores(args, t);
    std::vector<double> biased = scores;
    if (!args.bias.absent()) {
      for (size_t e = 0; e < biased.size(); ++e) biased[e] += args.bias.as<const float>()[e];
    }
    if (args.n_group > 1) DropGroups(args, biased);
    const std::vector<int64_t> order = Ranked(biased);
    double sum = 0.0;
    for (int64_t c = 0; c < args.top_k; ++c) {
      sum += scores[static_cast<size_t>(order[static_cast<size_t>(c)])];
    }
    for (int64_t c = 0; c < args.top_k; ++c) {
      const int64_t expert = order[static_cast<size_t>(c)];
      const double weight =
          scores[static_cast<size_t>(expert)] / (args.normalize ? sum + 1e-20 : 1.0) * args.scale;
      args.experts.row<int32_t>(t)[c] = static_cast<int32_t>(expert);
      args.weights.row<float>(t)[c] = static_cast<float>(weight);
      if (args.replicas.absent()) continue;
      const uint32_t hash = args.row_hash.as<const uint32_t>()[t];
      const uint32_t count = args.replica_count.as<const uint32_t>()[expert];
      args.physical.row<int32_t>(t)[c] = args.replicas.row<const int32_t>(expert)[hash % count];
    }
  }
  return absl::OkStatus();
}

absl::Status MoePermute(Device&, const MoePermuteArgs& args) {
  const int64_t pairs = args.experts.elements(), top_k = args.experts.dim(1);
  const int64_t experts = args.offsets.dim(0) - 1;
  const int32_t* ids = args.experts.as<const int32_t>();
  int32_t* offsets = args.offsets.as<int32_t>();
  int32_t* row_tokens = args.row_tokens.as<int32_t>();
  int32_t* rows = args.rows.as<int32_t>();
  const int64_t room = args.row_tokens.dim(0);
  std::fill(row_tokens, row_tokens + room, -1);
  std::fill(rows, rows + pairs, -1);
  int32_t row = 0;
  for (int64_t e = 0; e < experts; ++e) {
    offsets[e] = row;
    for (int64_t pair = 0; pair < pairs; ++pair) {
      if (ids[pair] != args.first_expert + e || row == room) continue;
      row_tokens[row] = static_cast<int32_t>(pair / top_k);
      rows[pair] = row++;
    }
  }
  offsets[experts] = row;
  return absl::OkStatus();
}

absl::Status MoeCombine(Device&, const MoeCombineArgs& args) {
  const int64_t top_k = args.rows.dim(1);
  for (int64_t t = 0; t < args.out.dim(0); ++t) {
    for (int64_t i = 0; i < args.out.dim(1); ++i) {
      double sum = args.accumulate ? At(args.out, t, i) : 0.0;
      for (int64_t c = 0; c < top_k; ++c) {
        const int32_t row = args.rows.row<const int32_t>(t)[c];
        if (row >= 0) sum += At(args.weights, t, c) * At(args.y, row, i);
      }
      if (!args.shared.absent()) sum += At(args.shared, t, i);
      Put(args.out, t, i, sum);
    }
  }
  return absl::OkStatus();
}

}  // namespace baton::kernels::reference
