#ifndef BATON_KERNELS_SAMPLING_H_
#define BATON_KERNELS_SAMPLING_H_

// The arithmetic that fixes which token a row draws (SampleArgs in ops.h), shared by all backends:
// a sampled token must not depend on where it was sampled.

#include <cmath>
#include <cstdint>

#include "absl/types/span.h"
#include "kernels/ops.h"

namespace baton::kernels {

// False for a row that holds NaN or +inf, or nothing but -inf.
bool HasDistribution(absl::Span<const float> logits);

// Repetition, then frequency and presence penalty on the tokens seen, each in F32.
void ApplyPenalties(const SampleParams& params, float* logits);

// Weight of a token relative to the best one; temperature > 0. In [0, 1], exactly 1 for the best.
inline double DrawWeight(float logit, float best, float temperature) {
  return std::exp((static_cast<double>(logit) - static_cast<double>(best)) /
                  static_cast<double>(temperature));
}

// Uniform in [0, 1) for (seed, position).
double DrawUniform(uint64_t seed, int64_t position);

// Index of the weight in which u times the sum of all falls, walking up; `weights` is not empty and
// holds no zeros.
size_t DrawIndex(absl::Span<const double> weights, uint64_t seed, int64_t position);

}  // namespace baton::kernels

#endif  // BATON_KERNELS_SAMPLING_H_
