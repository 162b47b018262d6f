// Ops that the backend does not have yet. While one stands here, programs do not offer the backend.

#include "kernels/cuda/cuda_ops.h"

namespace baton::kernels::cuda {

#define BATON_UNFINISHED(Name)                             \
  absl::Status Name(Device&, const Name##Args&) {          \
    return absl::UnimplementedError("cuda has no " #Name); \
  }

BATON_UNFINISHED(MlaAbsorbQ)
BATON_UNFINISHED(MlaExpandV)

}  // namespace baton::kernels::cuda
