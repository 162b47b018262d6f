#include "kernels/cuda/cublaslt_library.h"

#include <cublasLt.h>

#include <string>

#include "base/shared_library.h"

// What the backend calls, each with the parameters that cublasLt.h gives it (the compiler
// compares).
#define BATON_CUBLASLT_FUNCTIONS(V)                                                              \
  V(cublasLtCreate, (cublasLtHandle_t * handle), (handle))                                       \
  V(cublasLtDestroy, (cublasLtHandle_t handle), (handle))                                        \
  V(cublasLtMatmulDescCreate,                                                                    \
    (cublasLtMatmulDesc_t * desc, cublasComputeType_t compute, cudaDataType_t scale),            \
    (desc, compute, scale))                                                                      \
  V(cublasLtMatmulDescDestroy, (cublasLtMatmulDesc_t desc), (desc))                              \
  V(cublasLtMatmulDescSetAttribute,                                                              \
    (cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute, const void* value,     \
     size_t bytes),                                                                              \
    (desc, attribute, value, bytes))                                                             \
  V(cublasLtMatrixLayoutCreate,                                                                  \
    (cublasLtMatrixLayout_t * layout, cudaDataType type, uint64_t rows, uint64_t columns,        \
     int64_t stride),                                                                            \
    (layout, type, rows, columns, stride))                                                       \
  V(cublasLtMatrixLayoutDestroy, (cublasLtMatrixLayout_t layout), (layout))                      \
  V(cublasLtMatmulPreferenceCreate, (cublasLtMatmulPreference_t * preference), (preference))     \
  V(cublasLtMatmulPreferenceDestroy, (cublasLtMatmulPreference_t preference), (preference))      \
  V(cublasLtMatmulPreferenceSetAttribute,                                                        \
    (cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,      \
     const void* value, size_t bytes),                                                           \
    (preference, attribute, value, bytes))                                                       \
  V(cublasLtMatmulAlgoGetHeuristic,                                                              \
    (cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,               \
     cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,               \
     cublasLtMatmulPreference_t preference, int most, cublasLtMatmulHeuristicResult_t results[], \
     int* count),                                                                                \
    (handle, desc, a, b, c, d, preference, most, results, count))                                \
  V(cublasLtMatmulAlgoConfigGetAttribute,                                                        \
    (const cublasLtMatmulAlgo_t* algorithm, cublasLtMatmulAlgoConfigAttributes_t attribute,      \
     void* value, size_t bytes, size_t* written),                                                \
    (algorithm, attribute, value, bytes, written))                                               \
  V(cublasLtMatmulAlgoCheck,                                                                     \
    (cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,               \
     cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,               \
     const cublasLtMatmulAlgo_t* algorithm, cublasLtMatmulHeuristicResult_t* result),            \
    (handle, desc, a, b, c, d, algorithm, result))                                               \
  V(cublasLtMatmul,                                                                              \
    (cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void* alpha, const void* a,       \
     cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,            \
     const void* beta, const void* c, cublasLtMatrixLayout_t c_layout, void* d,                  \
     cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algorithm, void* workspace,    \
     size_t workspace_bytes, cudaStream_t stream),                                               \
    (handle, desc, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout, algorithm,   \
     workspace, workspace_bytes, stream))

namespace baton::kernels::cuda {
namespace {

// The file that the build found, behind what the dynamic linker finds.
constexpr const char* kNames[] = {"libcublasLt.so.13", BATON_CUBLASLT_LIBRARY};

// Of the process, as the functions below belong to no object. Never destroyed.
const SharedLibrary& CublasLt() {
  static const auto* const library =
      new SharedLibrary(kNames, "install cuBLAS 13, or set kernels.cuda.dense_gemm to own");
  return *library;
}

template <typename Function>
Function* Find(const char* name) {
  return reinterpret_cast<Function*>(CublasLt().Find(name));
}

}  // namespace

absl::Status LoadCublasLt() {
#define BATON_NAME(function, parameters, arguments) #function,
  static constexpr const char* kFunctions[] = {
      BATON_CUBLASLT_FUNCTIONS(BATON_NAME) "cublasLtGetStatusString"};
#undef BATON_NAME
  return CublasLt().Has(kFunctions);
}

}  // namespace baton::kernels::cuda

using baton::kernels::cuda::CublasLt;
using baton::kernels::cuda::Find;

extern "C" {

#define BATON_FORWARD(function, parameters, arguments)                       \
  cublasStatus_t function parameters {                                       \
    static auto* const real = Find<decltype(function)>(#function);           \
    return real == nullptr ? CUBLAS_STATUS_NOT_INITIALIZED : real arguments; \
  }
BATON_CUBLASLT_FUNCTIONS(BATON_FORWARD)

const char* cublasLtGetStatusString(cublasStatus_t status) {
  static auto* const real = Find<decltype(cublasLtGetStatusString)>("cublasLtGetStatusString");
  if (real != nullptr) return real(status);
  static const auto* const why = new std::string(CublasLt().status().message());
  return why->c_str();
}

}  // extern "C"
