#ifndef BATON_KERNELS_CUDA_CUBLASLT_PLAN_H_
#define BATON_KERNELS_CUDA_CUBLASLT_PLAN_H_

// One algorithm of cuBLASLt for all products of a kind, and the call.

#include <cublasLt.h>

#include <compare>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace baton::kernels::cuda {

inline constexpr char kCublasLtSwitch[] = "set kernels.cuda.dense_gemm to own";

// What products have in common that are computed by one algorithm.
struct CublasLtKind {
  int64_t k = 0;
  bool codes = false;  // E4M3 by E4M3 with scales of 128 k, else BF16 by BF16
  bool bf16 = false;   // out, else F32
  bool add = false;    // out += x w^T
  friend auto operator<=>(const CublasLtKind&, const CublasLtKind&) = default;

  int64_t element_bytes() const { return codes ? 1 : 2; }  // of x and w
  int64_t out_bytes() const { return bf16 ? 2 : 4; }       // of an element
  // E4M3: how many scales, and in the layouts below how far blocks of w's rows lie apart.
  int64_t scales() const { return (k + 127) / 128; }
  int64_t padded_scales() const { return (scales() + 3) / 4 * 4; }
};

// One call: out = x w^T. All pointers, and x and w's strides in bytes, are multiples of 16 bytes.
struct CublasLtProduct {
  int64_t rows = 0, columns = 0;
  const char* x = nullptr;  // [rows, k]
  int64_t x_stride = 0;
  const char* w = nullptr;  // [columns, k]
  int64_t w_stride = 0;
  // E4M3, in the library's layouts: rows and columns are multiples of 4.
  const float* x_scales = nullptr;  // [scales, rows]
  const float* w_scales = nullptr;  // [blocks of 128 columns, padded_scales], zeros behind the last
  char* out = nullptr;              // [rows, columns]
  int64_t out_stride = 0;
};

class CublasLtPlan {
 public:
  // Of the small product that others of the kind are compared with.
  static constexpr int64_t kSampleRows = 16;
  static constexpr int64_t kSampleColumns = 16;

  // The library's first choice for a chunk of a prompt by a wide matrix that also takes the small
  // product. `like`: a product of the kind. FAILED_PRECONDITION, which names the switch, when it
  // has none without a split of K and without working memory.
  static absl::StatusOr<std::unique_ptr<CublasLtPlan>> Choose(cublasLtHandle_t library,
                                                              const CublasLtKind& kind,
                                                              const CublasLtProduct& like);
  ~CublasLtPlan();
  CublasLtPlan(const CublasLtPlan&) = delete;

  const CublasLtKind& kind() const { return kind_; }
  // Whether the algorithm takes a product of these sizes; FAILED_PRECONDITION as above.
  absl::Status Check(const CublasLtProduct& product);
  absl::Status Multiply(const CublasLtProduct& product, cudaStream_t stream);

  // Sizes whose bits have been compared with the small product's, or are about to be.
  bool Compared(const CublasLtProduct& product) const {
    return compared_.count({product.columns, product.rows}) > 0;
  }
  void SetCompared(const CublasLtProduct& product, bool compared) {
    if (compared) {
      compared_.emplace(product.columns, product.rows);
    } else {
      compared_.erase({product.columns, product.rows});
    }
  }

 private:
  CublasLtPlan(cublasLtHandle_t library, const CublasLtKind& kind)
      : library_(library), kind_(kind) {}
  absl::Status MakeOperation();
  absl::Status SetScales(const CublasLtProduct& product);

  const cublasLtHandle_t library_;
  const CublasLtKind kind_;
  cublasLtMatmulDesc_t operation_ = nullptr;
  cublasLtMatmulAlgo_t algorithm_ = {};
  std::set<std::pair<int64_t, int64_t>> compared_;  // (columns, rows)
};

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_CUBLASLT_PLAN_H_
