#ifndef BATON_KERNELS_CUDA_CUBLASLT_GEMM_H_
#define BATON_KERNELS_CUDA_CUBLASLT_GEMM_H_

// Dense products of BF16 rows with BF16 weights by NVIDIA's cuBLASLt, for DenseGemm::kCublasLt.
//
// The library promises the same bits for the same call, not for calls of different sizes; row
// invariance is made of that so. One algorithm for each K and type of result, without a split of K
// and without working memory, whatever the number of rows and columns: each output is then one
// chain of matrix instructions over K. Rows go in blocks, so that the numbers of rows that the
// library meets are few: multiples of 128, and a rest padded to 16, 32, 64 or 128. And whenever
// such a number is first met with a matrix of N columns, samples of its outputs are compared, bit
// for bit, with those of one small product, 8 columns of 16 rows, the same for all: what passes is
// equal to it, hence among each other.
//
// Belongs to one CudaState. The first call of each size waits for the GPU.

#include <cublasLt.h>

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <tuple>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/ops.h"

namespace baton::kernels::cuda {

class CudaState;

class CublasLtGemm {
 public:
  // FAILED_PRECONDITION when the library is not there.
  static absl::StatusOr<std::unique_ptr<CublasLtGemm>> Create();
  ~CublasLtGemm();
  CublasLtGemm(const CublasLtGemm&) = delete;

  // Whether products with this weight go this way: decided by types, K and layout, never by the
  // number of rows.
  static bool Takes(const LinearArgs& args);

  // Linear. FAILED_PRECONDITION, which names the switch, when the library has no algorithm of that
  // kind or its results differ.
  absl::Status Run(CudaState& state, const LinearArgs& args);

 private:
  struct Plan {
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatmulAlgo_t algorithm;
    std::set<std::pair<int64_t, int64_t>> compared;  // (columns, rows) of calls
  };
  struct Product;  // one call

  CublasLtGemm() = default;
  absl::StatusOr<Plan*> PlanFor(const LinearArgs& args);
  absl::Status Choose(const LinearArgs& args, Plan& plan);
  absl::Status Check(const Plan& plan, const Product& product) const;
  absl::Status Multiply(CudaState& state, const Plan& plan, const Product& product) const;
  absl::Status RunRows(CudaState& state, Plan& plan, const LinearArgs& args, int64_t first,
                       int64_t rows);
  absl::Status Gather(CudaState& state, const Product& product, const void* from, int64_t stride,
                      int64_t columns, int64_t bytes, void* to, int64_t to_stride) const;
  absl::Status Compare(CudaState& state, Plan& plan, const Product& product);

  cublasLtHandle_t library_ = nullptr;
  // By K, type of the result, and whether it is added to.
  std::map<std::tuple<int64_t, DType, bool>, Plan> plans_;
};

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_CUBLASLT_GEMM_H_
