// Samplers without full sorts: only rows that ask for top-k or top-p look at an order, and only at
// as much of it as they keep. The arithmetic that fixes the drawn token is that of
// kernels/sampling.h, the same as in `reference`.

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rows.h"
#include "kernels/sampling.h"

namespace baton::kernels::cpu {
namespace {

// Orders token ids by logit, highest first, ties to the lowest id.
struct Better {
  const float* logits;
  bool operator()(int32_t a, int32_t b) const {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  }
};

// Memory of one row, kept between rows.
struct Buffers {
  std::vector<float> logits;      // after penalties
  std::vector<int32_t> kept;      // candidate ids
  std::vector<uint64_t> weights;  // of `kept`
};

int32_t ArgMax(absl::Span<const float> logits) {
  size_t best = 0;
  for (size_t i = 1; i < logits.size(); ++i) {
    if (logits[i] > logits[best]) best = i;
  }
  return static_cast<int32_t>(best);
}

// Leaves in `kept` the shortest prefix of the order whose mass reaches top_p of all, in any order.
// Sorts ever longer prefixes: probability is concentrated, so the first is nearly always enough.
void KeepTopP(const SampleParams& params, float best, Buffers& buffers) {
  std::vector<int32_t>& kept = buffers.kept;
  const auto weight = [&](int32_t token) {
    return DrawWeight(buffers.logits[static_cast<size_t>(token)], best, params.temperature);
  };
  uint64_t mass = 0;
  for (int32_t token : kept) mass += weight(token);
  const uint64_t wanted = WantedMass(params.top_p, mass);
  const Better better{buffers.logits.data()};
  uint64_t reached = 0;
  size_t count = 0, sorted = 0;
  while (reached < wanted) {
    if (count == sorted) {
      sorted = std::min(kept.size(), std::max<size_t>(64, 4 * sorted));
      const auto from = kept.begin() + static_cast<int64_t>(count);
      std::partial_sort(from, kept.begin() + static_cast<int64_t>(sorted), kept.end(), better);
    }
    reached += weight(kept[count++]);
  }
  kept.resize(count);
}

int32_t Draw(const SampleParams& params, Buffers& buffers) {
  const std::vector<float>& logits = buffers.logits;
  const int32_t top = ArgMax(logits);
  if (params.temperature == 0.0f) return top;
  const float best = logits[static_cast<size_t>(top)];
  std::vector<int32_t>& kept = buffers.kept;
  kept.resize(logits.size());
  std::iota(kept.begin(), kept.end(), 0);
  const size_t top_k = static_cast<size_t>(params.top_k);
  if (top_k > 0 && top_k < kept.size()) {
    const auto border = kept.begin() + params.top_k;
    std::nth_element(kept.begin(), border - 1, kept.end(), Better{logits.data()});
    kept.erase(border, kept.end());
    std::sort(kept.begin(), kept.end());
  }
  if (params.top_p < 1.0f) {
    KeepTopP(params, best, buffers);
    std::sort(kept.begin(), kept.end());
  }
  buffers.weights.clear();
  const uint64_t least = LeastWeight(params.min_p);
  size_t count = 0;
  for (int32_t token : kept) {
    const uint64_t weight =
        DrawWeight(logits[static_cast<size_t>(token)], best, params.temperature);
    if (weight < least) continue;
    kept[count++] = token;
    buffers.weights.push_back(weight);
  }
  return kept[DrawIndex(buffers.weights, params.seed, params.position)];
}

void ReportLogprobs(IsaLevel isa, absl::Span<const float> raw, int32_t top, Buffers& buffers,
                    SampleResult& result) {
  const float best = raw[static_cast<size_t>(ArgMax(raw))];
  const float sum = SumExpRow(isa, raw.data(), static_cast<int64_t>(raw.size()), best);
  const float log_sum = std::log(sum);
  const auto logprob = [&](int32_t token) {
    return raw[static_cast<size_t>(token)] - best - log_sum;
  };
  result.logprob = logprob(result.token);
  if (top == 0) return;
  std::vector<int32_t>& order = buffers.kept;
  order.resize(raw.size());
  std::iota(order.begin(), order.end(), 0);
  const size_t count = std::min(raw.size(), static_cast<size_t>(top));
  std::partial_sort(order.begin(), order.begin() + static_cast<int64_t>(count), order.end(),
                    Better{raw.data()});
  for (size_t i = 0; i < count && !std::isinf(raw[static_cast<size_t>(order[i])]); ++i) {
    result.top[result.top_count++] = {order[i], logprob(order[i])};
  }
}

}  // namespace

absl::Status Sample(Device& device, const SampleArgs& args) {
  const int64_t vocabulary = args.logits.dim(1);
  ParallelFor(device, args.logits.dim(0), 4 * vocabulary, [&](int64_t begin, int64_t end, int) {
    Buffers buffers;
    for (int64_t t = begin; t < end; ++t) {
      const absl::Span<const float> raw(args.logits.row<const float>(t),
                                        static_cast<size_t>(vocabulary));
      const SampleParams& params = args.params[static_cast<size_t>(t)];
      SampleResult& result = args.results[static_cast<size_t>(t)];
      result = SampleResult{};
      if (!HasDistribution(raw)) continue;
      buffers.logits.assign(raw.begin(), raw.end());
      ApplyPenalties(params, buffers.logits.data());
      result.token = Draw(params, buffers);
      ReportLogprobs(device.isa(), raw, params.top_logprobs, buffers, result);
    }
  });
  return absl::OkStatus();
}

}  // namespace baton::kernels::cpu
