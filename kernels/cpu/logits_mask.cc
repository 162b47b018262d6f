#include <limits>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/parallel.h"

namespace baton::kernels::cpu {

absl::Status LogitsMask(Device& device, const LogitsMaskArgs& args) {
  const int64_t vocabulary = args.logits.dim(1);
  ParallelFor(device, args.logits.dim(0), vocabulary, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      float* logits = args.logits.row<float>(t);
      const uint32_t* mask = args.mask.row<const uint32_t>(t);
      for (int64_t i = 0; i < vocabulary; ++i) {
        const bool allowed = (mask[i / 32] >> (i % 32) & 1u) != 0;
        logits[i] = allowed ? logits[i] : -std::numeric_limits<float>::infinity();
      }
    }
  });
  return absl::OkStatus();
}

}  // namespace baton::kernels::cpu
