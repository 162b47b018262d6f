#ifndef BATON_KERNELS_SAMPLING_H_
#define BATON_KERNELS_SAMPLING_H_

// The arithmetic that fixes which token a row draws (SampleArgs in ops.h), shared by all backends:
// a sampled token must not depend on where it was sampled.

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/draw_weight.h"
#include "kernels/ops.h"

namespace baton::kernels {

// False for a row that holds NaN or +inf, or nothing but -inf.
bool HasDistribution(absl::Span<const float> logits);

// Repetition, then frequency and presence penalty on the tokens seen, each in F32.
void ApplyPenalties(const SampleParams& params, float* logits);

// 53 uniform bits for (seed, position).
uint64_t DrawBits(uint64_t seed, int64_t position);

// Index of the weight in which the draw for (seed, position) falls, walking up; `weights` is not
// empty and holds no zeros.
size_t DrawIndex(absl::Span<const uint64_t> weights, uint64_t seed, int64_t position);

}  // namespace baton::kernels

#endif  // BATON_KERNELS_SAMPLING_H_
