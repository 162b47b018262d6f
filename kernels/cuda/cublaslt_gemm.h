#ifndef BATON_KERNELS_CUDA_CUBLASLT_GEMM_H_
#define BATON_KERNELS_CUDA_CUBLASLT_GEMM_H_

// Dense products by NVIDIA's cuBLASLt, for DenseGemm::kCublasLt: BF16 rows with BF16 weights, and
// on Hopper E4M3 rows (1x128 scales) with E4M3 weights (128x128).
//
// The library promises the same bits for the same call, not for calls of different sizes; row
// invariance is made of that so. One algorithm for each K and types, without a split of K and
// without working memory, whatever the number of rows and columns: each output is then one chain of
// matrix instructions over K. Rows go in blocks, so that the numbers of rows that the library meets
// are few: multiples of 128, and a rest padded to 16, 32, 64 or 128. And whenever such a number is
// first met with a matrix of N columns, samples of its outputs are compared, bit for bit, with
// those of one small product, 16 columns of 16 rows, the same for all: what passes is equal to it,
// hence among each other. No op waits for that: whoever waits for results of the device is told
// first.
//
// Belongs to one CudaState.

#include <cublasLt.h>

#include <cstdint>
#include <map>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/cublaslt_plan.h"
#include "kernels/cuda/cublaslt_verdicts.h"
#include "kernels/ops.h"

namespace baton::kernels::cuda {

class CudaState;

class CublasLtGemm {
 public:
  // FAILED_PRECONDITION when the library is not there.
  static absl::StatusOr<std::unique_ptr<CublasLtGemm>> Create();
  ~CublasLtGemm();
  CublasLtGemm(const CublasLtGemm&) = delete;

  // Whether products with this weight go this way: decided by types, K, layout and the GPU, never
  // by the number of rows, nor by which rows of a matrix the weight is.
  static bool Takes(const CudaState& state, const LinearArgs& args);

  // Linear. FAILED_PRECONDITION, which names the switch, when the library has no algorithm of that
  // kind, or results of earlier calls differ. Sizes that are new cannot be recorded.
  absl::Status Run(CudaState& state, const LinearArgs& args);

  // What comparisons have shown so far, each once; does not wait.
  absl::Status TakeVerdicts() { return verdicts_->Take(); }

 private:
  CublasLtGemm() = default;
  absl::StatusOr<CublasLtPlan*> PlanFor(const CublasLtKind& kind, const CublasLtProduct& like);
  absl::Status RunRows(CudaState& state, const LinearArgs& args, const CublasLtKind& kind,
                       const float* w_scales, int64_t first, int64_t rows);
  // The product, and samples of it by the small one, to be compared.
  absl::Status Compare(CudaState& state, CublasLtPlan& plan, const CublasLtProduct& product);
  absl::Status RunPiece(CudaState& state, CublasLtPlan& plan, CublasLtProduct product,
                        const TensorView& out);

  cublasLtHandle_t library_ = nullptr;
  std::map<CublasLtKind, std::unique_ptr<CublasLtPlan>> plans_;
  std::unique_ptr<CublasLtVerdicts> verdicts_;
};

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_CUBLASLT_GEMM_H_
