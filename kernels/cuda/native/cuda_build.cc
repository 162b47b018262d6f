#include "kernels/cuda/cuda_build.h"

#include "absl/strings/str_split.h"

namespace baton::kernels::cuda {

CudaBuild GetCudaBuild() {
  return {.emulated = false,
          .architectures = absl::StrSplit(BATON_CUDA_ARCHITECTURES, ' '),
          .libraries = BATON_CUDA_LIBRARIES};
}

}  // namespace baton::kernels::cuda
