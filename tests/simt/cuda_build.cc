// The emulation executes the code of every architecture that nvcc compiles.

#include "kernels/cuda/cuda_build.h"

namespace baton::kernels::cuda {

CudaBuild GetCudaBuild() {
  return {.emulated = true, .architectures = {"89", "90a", "100a"}, .libraries = ""};
}

}  // namespace baton::kernels::cuda
