// Of programs without NCCL.

#include "transport/gpu_place.h"

namespace baton::transport {

int CountGpus() { return 0; }

absl::StatusOr<std::unique_ptr<GpuPlace>> CreateGpuPlace(int) {
  return absl::FailedPreconditionError(
      "this build has no NCCL, which ranks on GPUs need to exchange data; build with `cmake "
      "--preset cuda`, or set the backend to cpu");
}

}  // namespace baton::transport
