#include "kernels/sampling.h"

#include <cmath>
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

uint64_t DrawBits(uint64_t seed, int64_t position) {
  const uint64_t p = static_cast<uint64_t>(position);
  const std::array<uint32_t, 4> bits =
      Philox4x32({static_cast<uint32_t>(p), static_cast<uint32_t>(p >> 32), 0, 0},
                 {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return ((uint64_t{bits[1]} << 32) | bits[0]) >> 11;
}

size_t DrawIndex(absl::Span<const uint64_t> weights, uint64_t seed, int64_t position) {
  uint64_t mass = 0;
  for (uint64_t weight : weights) mass += weight;
  BATON_CHECK(mass > 0);
  uint64_t target = DrawTarget(DrawBits(seed, position), mass);
  size_t i = 0;
  while (target >= weights[i]) target -= weights[i++];
  return i;
}

}  // namespace baton::kernels
