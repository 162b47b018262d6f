#ifndef BATON_KERNELS_CUDA_CUDA_BUILD_H_
#define BATON_KERNELS_CUDA_CUDA_BUILD_H_

// What the kernels of this program were compiled for. Defined where they are:
// native/cuda_build.cc, tests/simt/cuda_build.cc.

#include <string>
#include <vector>

namespace baton::kernels::cuda {

struct CudaBuild {
  bool emulated = false;
  std::vector<std::string> architectures;  // "89", "90a": as nvcc calls them, without sm_
  std::string libraries;                   // those it can use, with their versions, for people
};
CudaBuild GetCudaBuild();

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_CUDA_BUILD_H_
