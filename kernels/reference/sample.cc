// The logits' mask, and samplers by full sorts.

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/reference/reference_ops.h"
#include "kernels/reference/values.h"
#include "kernels/sampling.h"

namespace baton::kernels::reference {
namespace {

// Token ids by value, highest first, ties to the lowest id.
std::vector<int32_t> Ranked(const std::vector<float>& values) {
  std::vector<int32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return values[static_cast<size_t>(a)] > values[static_cast<size_t>(b)];
  });
  return order;
}

void ReportLogprobs(const std::vector<float>& raw, int32_t top, SampleResult& result) {
  const std::vector<int32_t> order = Ranked(raw);
  const double best = raw[static_cast<size_t>(order[0])];
  double sum = 0.0;
  for (float logit : raw) sum += std::exp(logit - best);
  const auto logprob = [&](int32_t token) {
    return static_cast<float>(raw[static_cast<size_t>(token)] - best - std::log(sum));
  };
  result.logprob = logprob(result.token);
  for (int32_t token : order) {
    if (result.top_count == top || std::isinf(raw[static_cast<size_t>(token)])) break;
    result.top[result.top_count++] = {token, logprob(token)};
  }
}

int32_t Choose(const std::vector<float>& logits, const SampleParams& params) {
  const std::vector<int32_t> order = Ranked(logits);
  if (params.temperature == 0.0f) return order[0];
  const float best = logits[static_cast<size_t>(order[0])];
  const auto weight = [&](int32_t token) {
    return DrawWeight(logits[static_cast<size_t>(token)], best, params.temperature);
  };
  const size_t top_k =
      params.top_k == 0 ? order.size() : std::min(order.size(), static_cast<size_t>(params.top_k));
  std::vector<int32_t> kept(order.begin(), order.begin() + static_cast<int64_t>(top_k));
  uint64_t mass = 0;
  for (int32_t token : kept) mass += weight(token);
  const uint64_t wanted = params.top_p == 1.0f ? mass : WantedMass(params.top_p, mass);
  uint64_t reached = 0;
  size_t count = 0;
  while (reached < wanted) reached += weight(kept[count++]);
  kept.resize(count);
  std::erase_if(kept, [&](int32_t token) { return weight(token) < LeastWeight(params.min_p); });
  std::sort(kept.begin(), kept.end());
  std::vector<uint64_t> weights;
  weights.reserve(kept.size());
  for (int32_t token : kept) weights.push_back(weight(token));
  return kept[DrawIndex(weights, params.seed, params.position)];
}

}  // namespace

absl::Status LogitsMask(Device&, const LogitsMaskArgs& args) {
  for (int64_t t = 0; t < args.logits.dim(0); ++t) {
    for (int64_t i = 0; i < args.logits.dim(1); ++i) {
      const uint32_t word = args.mask.row<const uint32_t>(t)[i / 32];
      const uint32_t bit = uint32_t{1} << (i % 32);
      if ((word & bit) == 0) {
        args.logits.row<float>(t)[i] = -std::numeric_limits<float>::infinity();
      }
    }
  }
  return absl::OkStatus();
}

absl::Status Sample(Device&, const SampleArgs& args) {
  for (int64_t t = 0; t < args.logits.dim(0); ++t) {
    const float* row = args.logits.row<const float>(t);
    const SampleParams& params = args.params[static_cast<size_t>(t)];
    SampleResult& result = args.results[static_cast<size_t>(t)];
    result = SampleResult{};
    const std::vector<float> raw(row, row + args.logits.dim(1));
    if (!HasDistribution(raw)) continue;
    std::vector<float> logits = raw;
    ApplyPenalties(params, logits.data());
    result.token = Choose(logits, params);
    ReportLogprobs(raw, params.top_logprobs, result);
  }
  return absl::OkStatus();
}

}  // namespace baton::kernels::reference
