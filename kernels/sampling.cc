#include "kernels/sampling.h"

#include <limits>

#include "base/check.h"
#include "base/random.h"

namespace baton::kernels {

bool HasDistribution(absl::Span<const float> logits) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  bool finite = false;
  for (float logit : logits) {
    if (!(logit < kInfinity)) return false;  // NaN or +inf
    finite = finite || logit > -kInfinity;
  }
  return finite;
}

void ApplyPenalties(const SampleParams& params, float* logits) {
  if (params.repetition_penalty == 1.0f && params.presence_penalty == 0.0f &&
      params.frequency_penalty == 0.0f) {
    return;
  }
  // Finite logits stay finite, so that a row that has a distribution keeps one.
  constexpr float kMax = std::numeric_limits<float>::max();
  for (const TokenCount& seen : params.seen) {
    float& logit = logits[seen.token];
    if (std::isinf(logit)) continue;
    logit = logit > 0.0f ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    if (seen.generated > 0) {
      logit -= params.frequency_penalty * static_cast<float>(seen.generated);
      logit -= params.presence_penalty;
    }
    logit = std::isnan(logit) ? -kMax : std::fmin(std::fmax(logit, -kMax), kMax);
  }
}

double DrawUniform(uint64_t seed, int64_t position) {
  const uint64_t p = static_cast<uint64_t>(position);
  const std::array<uint32_t, 4> bits =
      Philox4x32({static_cast<uint32_t>(p), static_cast<uint32_t>(p >> 32), 0, 0},
                 {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  const uint64_t word = (uint64_t{bits[1]} << 32) | bits[0];
  return static_cast<double>(word >> 11) * 0x1.0p-53;
}

size_t DrawIndex(absl::Span<const double> weights, uint64_t seed, int64_t position) {
  BATON_CHECK(!weights.empty());
  double total = 0.0;
  for (double weight : weights) total += weight;
  const double target = DrawUniform(seed, position) * total;
  double reached = 0.0;
  for (size_t i = 0; i < weights.size(); ++i) {
    reached += weights[i];
    if (reached > target) return i;
  }
  return weights.size() - 1;  // only if rounding brought target to total
}

}  // namespace baton::kernels
