#ifndef BATON_KERNELS_CUDA_CUBLASLT_VERDICTS_H_
#define BATON_KERNELS_CUDA_CUBLASLT_VERDICTS_H_

// Comparisons of products with the small product of their kind, of which the GPU has still to make
// the outputs: an op may stand behind a call of ranks that does not end, so none waits for its own.
// Belongs to one CublasLtGemm.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/cublaslt_plan.h"

namespace baton::kernels::cuda {

class CublasLtVerdicts {
 public:
  static constexpr size_t kMostBytes = 4096;  // of the outputs of one comparison

  static absl::StatusOr<std::unique_ptr<CublasLtVerdicts>> Create();
  // What is in the stream has ended.
  ~CublasLtVerdicts();
  CublasLtVerdicts(const CublasLtVerdicts&) = delete;

  // The stream has made `bytes` of outputs of the product at `large`, and the same of the small one
  // at `small`, which do not change until the stream goes on. The product's sizes count as compared
  // from now on. `what`: both products, for people. `plan` lives as long as this.
  absl::Status Expect(CublasLtPlan& plan, const CublasLtProduct& product, const char* small,
                      const char* large, size_t bytes, std::string what, cudaStream_t stream);

  // Those that the GPU has made, without waiting: FAILED_PRECONDITION, which names the switch, for
  // the first whose bits differ; its sizes no longer count as compared.
  absl::Status Take();

 private:
  // More than a pass meets; with so many under way the next one waits for the first.
  static constexpr size_t kMost = 128;

  struct Pending {
    CublasLtPlan* plan = nullptr;
    CublasLtProduct product;
    size_t bytes = 0;
    std::string what;
    cudaEvent_t end = nullptr;
    char* outputs = nullptr;  // pinned: kMostBytes of the small product, as many of the other
  };

  CublasLtVerdicts() = default;
  static absl::Status Judge(const Pending& pending);

  char* memory_ = nullptr;  // pinned
  std::vector<char*> free_;
  std::deque<Pending> pending_;  // in the stream's order
};

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_CUBLASLT_VERDICTS_H_
