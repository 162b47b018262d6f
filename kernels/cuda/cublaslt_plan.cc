#include "kernels/cuda/cublaslt_plan.h"

#include <array>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace baton::kernels::cuda {
namespace {

// Of the product that the library is asked for an algorithm for.
constexpr int64_t kPlanRows = 512;
constexpr int64_t kPlanColumns = 4096;
constexpr int kMostCandidates = 64;
constexpr uint32_t kAlignment = 16;

absl::Status LtStatus(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(what, ": ", cublasLtGetStatusString(status)));
}

// Column-major, as the library counts: a tensor's columns are its rows.
class Layout {
 public:
  Layout(cudaDataType type, int64_t columns, int64_t rows, int64_t stride)
      : status_(cublasLtMatrixLayoutCreate(&layout_, type, static_cast<uint64_t>(columns),
                                           static_cast<uint64_t>(rows), stride)) {}
  ~Layout() {
    if (layout_ != nullptr) (void)cublasLtMatrixLayoutDestroy(layout_);
  }
  Layout(const Layout&) = delete;
  cublasLtMatrixLayout_t get() const { return layout_; }
  cublasStatus_t status() const { return status_; }

 private:
  cublasLtMatrixLayout_t layout_ = nullptr;
  cublasStatus_t status_;
};

// Of a product: the library's a is w, its b is x.
struct Layouts {
  Layouts(const CublasLtKind& kind, const CublasLtProduct& product)
      : w(InputType(kind), kind.k, product.columns, product.w_stride),
        x(InputType(kind), kind.k, product.rows, product.x_stride),
        out(kind.bf16 ? CUDA_R_16BF : CUDA_R_32F, product.columns, product.rows,
            product.out_stride) {}
  static cudaDataType InputType(const CublasLtKind& kind) {
    return kind.codes ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
  }
  absl::Status status() const {
    for (const Layout* layout : {&w, &x, &out}) {
      BATON_RETURN_IF_ERROR(LtStatus(layout->status(), "cublasLtMatrixLayoutCreate"));
    }
    return absl::OkStatus();
  }

  const Layout w, x, out;
};

template <typename T>
absl::Status Set(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute,
                 const T& value) {
  return LtStatus(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof(value)),
                  "cublasLtMatmulDescSetAttribute");
}

template <typename T>
T AlgorithmHas(const cublasLtMatmulAlgo_t& algorithm, cublasLtMatmulAlgoConfigAttributes_t what) {
  T value{};
  size_t written = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoConfigGetAttribute(&algorithm, what, &value, sizeof(value), &written);
  // An attribute that an algorithm does not have counts as its default, none.
  return status == CUBLAS_STATUS_SUCCESS ? value : T{};
}

// K is not shared out, by any means.
bool IsOneChain(const cublasLtMatmulHeuristicResult_t& result) {
  return result.state == CUBLAS_STATUS_SUCCESS && result.workspaceSize == 0 &&
         AlgorithmHas<int32_t>(result.algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM) <= 1 &&
         AlgorithmHas<uint32_t>(result.algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME) ==
             CUBLASLT_REDUCTION_SCHEME_NONE;
}

using Preference = std::unique_ptr<cublasLtMatmulPreferenceOpaque_t,
                                   cublasStatus_t (*)(cublasLtMatmulPreference_t)>;

// No working memory; everything aligned to 16 bytes.
absl::StatusOr<Preference> MakePreference() {
  cublasLtMatmulPreference_t created = nullptr;
  BATON_RETURN_IF_ERROR(
      LtStatus(cublasLtMatmulPreferenceCreate(&created), "cublasLtMatmulPreferenceCreate"));
  Preference preference(created, &cublasLtMatmulPreferenceDestroy);
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    return LtStatus(cublasLtMatmulPreferenceSetAttribute(created, attribute, &value, sizeof(value)),
                    "cublasLtMatmulPreferenceSetAttribute");
  };
  BATON_RETURN_IF_ERROR(set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{0}));
  for (const cublasLtMatmulPreferenceAttributes_t alignment :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    BATON_RETURN_IF_ERROR(set(alignment, kAlignment));
  }
  return preference;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CublasLtPlan>> CublasLtPlan::Choose(cublasLtHandle_t library,
                                                                   const CublasLtKind& kind,
                                                                   const CublasLtProduct& like) {
  std::unique_ptr<CublasLtPlan> plan(new CublasLtPlan(library, kind));
  BATON_RETURN_IF_ERROR(plan->MakeOperation());
  BATON_ASSIGN_OR_RETURN(const Preference preference, MakePreference());
  CublasLtProduct planned = like;
  planned.rows = kPlanRows;
  planned.columns = planned.out_stride = kPlanColumns;
  planned.x_stride = planned.w_stride = kind.k;
  CublasLtProduct sample = planned;
  sample.rows = kSampleRows;
  sample.columns = sample.out_stride = kSampleColumns;
  BATON_RETURN_IF_ERROR(plan->SetScales(planned));
  const Layouts layouts(kind, planned);
  BATON_RETURN_IF_ERROR(layouts.status());
  std::array<cublasLtMatmulHeuristicResult_t, kMostCandidates> results;
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      library, plan->operation_, layouts.w.get(), layouts.x.get(), layouts.out.get(),
      layouts.out.get(), preference.get(), kMostCandidates, results.data(), &found);
  for (int i = 0; status == CUBLAS_STATUS_SUCCESS && i < found; ++i) {
    const cublasLtMatmulHeuristicResult_t& result = results[static_cast<size_t>(i)];
    if (!IsOneChain(result)) continue;
    plan->algorithm_ = result.algo;
    if (plan->Check(planned).ok() && plan->Check(sample).ok()) return plan;
  }
  return absl::FailedPreconditionError(absl::StrCat(
      "cuBLASLt has no algorithm for ", kind.codes ? "E4M3" : "BF16", " products of K = ", kind.k,
      " without a split of K and without working memory (", found, " offered, ",
      cublasLtGetStatusString(status), "); ", kCublasLtSwitch));
}

CublasLtPlan::~CublasLtPlan() {
  if (operation_ != nullptr) (void)cublasLtMatmulDescDestroy(operation_);
}

absl::Status CublasLtPlan::MakeOperation() {
  BATON_RETURN_IF_ERROR(
      LtStatus(cublasLtMatmulDescCreate(&operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F),
               "cublasLtMatmulDescCreate"));
  BATON_RETURN_IF_ERROR(Set(operation_, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T));
  if (!kind_.codes) return absl::OkStatus();
  // Sums of 128 k enter F32, as those of Baton's own kernels.
  BATON_RETURN_IF_ERROR(Set(operation_, CUBLASLT_MATMUL_DESC_FAST_ACCUM, int8_t{0}));
  BATON_RETURN_IF_ERROR(Set(operation_, CUBLASLT_MATMUL_DESC_A_SCALE_MODE,
                            int32_t{CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F}));
  return Set(operation_, CUBLASLT_MATMUL_DESC_B_SCALE_MODE,
             int32_t{CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F});
}

absl::Status CublasLtPlan::SetScales(const CublasLtProduct& product) {
  if (!kind_.codes) return absl::OkStatus();
  BATON_RETURN_IF_ERROR(Set(operation_, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, product.w_scales));
  return Set(operation_, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, product.x_scales);
}

absl::Status CublasLtPlan::Check(const CublasLtProduct& product) {
  BATON_RETURN_IF_ERROR(SetScales(product));
  const Layouts layouts(kind_, product);
  BATON_RETURN_IF_ERROR(layouts.status());
  cublasLtMatmulHeuristicResult_t result = {};
  const cublasStatus_t status =
      cublasLtMatmulAlgoCheck(library_, operation_, layouts.w.get(), layouts.x.get(),
                              layouts.out.get(), layouts.out.get(), &algorithm_, &result);
  if (status == CUBLAS_STATUS_SUCCESS && result.workspaceSize == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "cuBLASLt's algorithm does not take ", product.rows, " rows of ", kind_.k, " for ",
      product.columns, " columns (", cublasLtGetStatusString(status), "); ", kCublasLtSwitch));
}

absl::Status CublasLtPlan::Multiply(const CublasLtProduct& product, cudaStream_t stream) {
  BATON_RETURN_IF_ERROR(SetScales(product));
  const Layouts layouts(kind_, product);
  BATON_RETURN_IF_ERROR(layouts.status());
  const float alpha = 1.0f, beta = kind_.add ? 1.0f : 0.0f;
  return LtStatus(
      cublasLtMatmul(library_, operation_, &alpha, product.w, layouts.w.get(), product.x,
                     layouts.x.get(), &beta, product.out, layouts.out.get(), product.out,
                     layouts.out.get(), &algorithm_, /*workspace=*/nullptr, 0, stream),
      "cublasLtMatmul");
}

}  // namespace baton::kernels::cuda
