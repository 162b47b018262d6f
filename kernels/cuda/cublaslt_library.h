#ifndef BATON_KERNELS_CUDA_CUBLASLT_LIBRARY_H_
#define BATON_KERNELS_CUDA_CUBLASLT_LIBRARY_H_

// cuBLASLt's functions, of a shared library that is opened by the first call of one of them, so
// that programs start without it (native/cublaslt_library.cc); or the emulation's (tests/simt).

#include "absl/status/status.h"

namespace baton::kernels::cuda {

// That the library is there and has every function that the backend calls; else
// FAILED_PRECONDITION with the fix.
absl::Status LoadCublasLt();

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_CUBLASLT_LIBRARY_H_
