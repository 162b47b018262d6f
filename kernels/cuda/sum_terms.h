#ifndef BATON_KERNELS_CUDA_SUM_TERMS_H_
#define BATON_KERNELS_CUDA_SUM_TERMS_H_

// The sum of an all-reduce: what the ranks of a group have sent, in their order.

#include <cstdint>

#include "kernels/cuda/launch_args.h"

namespace baton::kernels::cuda {

struct SumTermsLaunch {
  static constexpr int kMaxTerms = 64;
  const void* terms[kMaxTerms] = {};
  int count = 0;         // of terms, 1..kMaxTerms
  void* out = nullptr;   // may be one of the terms
  int64_t elements = 0;  // of each, > 0
  bool bf16 = false;     // of all; F32 otherwise
};
// out[i] = ((terms[0][i] + terms[1][i]) + ...) in F32, rounded once. Bytes moved: elements * (count
// + 1) * the element's.
cudaError_t LaunchSumTerms(const SumTermsLaunch& args, cudaStream_t stream);

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_SUM_TERMS_H_
