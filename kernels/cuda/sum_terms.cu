#include "kernels/cuda/sum_terms.h"

#include <algorithm>

#include "kernels/cuda/device.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 4096;

BATON_KERNEL(kThreads) SumTermsKernel(const SumTermsLaunch args) {
  const int64_t step = static_cast<int64_t>(GridX()) * kThreads;
  for (int64_t i = static_cast<int64_t>(BlockX()) * kThreads + ThreadIndex(); i < args.elements;
       i += step) {
    float sum = 0.0f;
    for (int term = 0; term < args.count; ++term) {
      const float value = args.bf16 ? Bf16ToFloat(static_cast<const uint16_t*>(args.terms[term])[i])
                                    : static_cast<const float*>(args.terms[term])[i];
      sum = term == 0 ? value : sum + value;  // 0 + -0 would lose the sign
    }
    if (args.bf16) {
      static_cast<uint16_t*>(args.out)[i] = FloatToBf16(sum);
    } else {
      static_cast<float*>(args.out)[i] = sum;
    }
  }
}

}  // namespace

cudaError_t LaunchSumTerms(const SumTermsLaunch& args, cudaStream_t stream) {
  const int64_t blocks = std::min(kMaxBlocks, (args.elements + kThreads - 1) / kThreads);
  return Launch(
      SumTermsKernel,
      {.grid = dim3(static_cast<unsigned>(blocks)), .threads = kThreads, .stream = stream}, args);
}

}  // namespace baton::kernels::cuda
