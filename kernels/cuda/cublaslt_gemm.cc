#include "kernels/cuda/cublaslt_gemm.h"

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "kernels/cuda/cublaslt_library.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/pad_rows.h"

namespace baton::kernels::cuda {
namespace {

constexpr int64_t kBlockRows = 128;
constexpr int64_t kLeastRows = 16;
// Of the small product that others are compared with.
constexpr int64_t kSampleRows = kLeastRows;
constexpr int64_t kSampleColumns = 8;
constexpr size_t kSamples = 3;  // the first columns, some in the middle, the last
constexpr char kSampling[] = "samples of a product";
// Of the product that the library is asked for an algorithm for: a chunk of a prompt, a wide
// matrix.
constexpr int64_t kPlanRows = 512;
constexpr int64_t kPlanColumns = 4096;
constexpr int kMostCandidates = 64;
constexpr uint32_t kAlignment = 16;

constexpr char kSwitch[] = "set kernels.cuda.dense_gemm to own";

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

bool Aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % kAlignment == 0; }

// The number of rows that the library sees; `rows` is a multiple of kBlockRows or less than it.
int64_t PaddedRows(int64_t rows) {
  int64_t padded = kLeastRows;
  while (padded < std::min(rows, kBlockRows)) padded *= 2;
  return std::max(padded, rows);
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

}  // namespace

struct CublasLtGemm::Product {
  int64_t rows = 0, columns = 0, k = 0;
  const char* x = nullptr;  // BF16 [rows, k]
  int64_t x_stride = 0;
  const char* w = nullptr;  // BF16 [columns, k]
  int64_t w_stride = 0;
  char* out = nullptr;  // [rows, columns]
  int64_t out_stride = 0;
  bool bf16 = false;  // out, else F32
  bool add = false;   // out += x w^T

  cudaDataType type() const { return bf16 ? CUDA_R_16BF : CUDA_R_32F; }
  int64_t out_bytes() const { return bf16 ? 2 : 4; }  // of an element
};

absl::StatusOr<std::unique_ptr<CublasLtGemm>> CublasLtGemm::Create() {
  BATON_RETURN_IF_ERROR(LoadCublasLt());
  std::unique_ptr<CublasLtGemm> gemm(new CublasLtGemm);
  BATON_RETURN_IF_ERROR(LtStatus(cublasLtCreate(&gemm->library_), "cublasLtCreate"));
  return gemm;
}

CublasLtGemm::~CublasLtGemm() {
  for (auto& [key, plan] : plans_) {
    if (plan.operation != nullptr) (void)cublasLtMatmulDescDestroy(plan.operation);
  }
  if (library_ != nullptr) (void)cublasLtDestroy(library_);
}

bool CublasLtGemm::Takes(const LinearArgs& args) {
  return args.epilogue != Epilogue::kSiluMul && args.x.dtype == DType::kBF16 &&
         args.w.w.dtype == DType::kBF16 && args.x.dim(1) % 8 == 0 && args.x.strides[0] % 8 == 0 &&
         args.w.w.strides[0] % 8 == 0 && Aligned(args.x.data) && Aligned(args.w.w.data);
}

absl::Status CublasLtGemm::Check(const Plan& plan, const Product& product) const {
  const Layout w(CUDA_R_16BF, product.k, product.columns, product.w_stride);
  const Layout x(CUDA_R_16BF, product.k, product.rows, product.x_stride);
  const Layout out(product.type(), product.columns, product.rows, product.out_stride);
  cublasLtMatmulHeuristicResult_t result = {};
  const cublasStatus_t status = cublasLtMatmulAlgoCheck(
      library_, plan.operation, w.get(), x.get(), out.get(), out.get(), &plan.algorithm, &result);
  if (status == CUBLAS_STATUS_SUCCESS && result.workspaceSize == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "cuBLASLt's algorithm does not take ", product.rows, " rows of ", product.k, " for ",
      product.columns, " columns (", cublasLtGetStatusString(status), "); ", kSwitch));
}

absl::Status CublasLtGemm::Choose(const LinearArgs& args, Plan& plan) {
  const cublasOperation_t transposed = CUBLAS_OP_T;
  BATON_RETURN_IF_ERROR(
      LtStatus(cublasLtMatmulDescCreate(&plan.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F),
               "cublasLtMatmulDescCreate"));
  BATON_RETURN_IF_ERROR(
      LtStatus(cublasLtMatmulDescSetAttribute(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA,
                                              &transposed, sizeof(transposed)),
               "cublasLtMatmulDescSetAttribute"));
  cublasLtMatmulPreference_t preference = nullptr;
  BATON_RETURN_IF_ERROR(
      LtStatus(cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate"));
  const std::unique_ptr<cublasLtMatmulPreferenceOpaque_t,
                        cublasStatus_t (*)(cublasLtMatmulPreference_t)>
      owned(preference, &cublasLtMatmulPreferenceDestroy);
  const uint64_t no_bytes = 0;
  BATON_RETURN_IF_ERROR(LtStatus(
      cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                           &no_bytes, sizeof(no_bytes)),
      "cublasLtMatmulPreferenceSetAttribute"));
  for (const cublasLtMatmulPreferenceAttributes_t alignment :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    BATON_RETURN_IF_ERROR(LtStatus(cublasLtMatmulPreferenceSetAttribute(
                                       preference, alignment, &kAlignment, sizeof(kAlignment)),
                                   "cublasLtMatmulPreferenceSetAttribute"));
  }
  const int64_t k = args.x.dim(1);
  Product planned{.rows = kPlanRows,
                  .columns = kPlanColumns,
                  .k = k,
                  .x_stride = k,
                  .w_stride = k,
                  .out_stride = kPlanColumns,
                  .bf16 = args.out.dtype == DType::kBF16,
                  .add = args.epilogue == Epilogue::kAdd};
  const Layout w(CUDA_R_16BF, k, kPlanColumns, k), x(CUDA_R_16BF, k, kPlanRows, k),
      out(planned.type(), kPlanColumns, kPlanRows, kPlanColumns);
  std::array<cublasLtMatmulHeuristicResult_t, kMostCandidates> results;
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      library_, plan.operation, w.get(), x.get(), out.get(), out.get(), preference, kMostCandidates,
      results.data(), &found);
  Product sample = planned;
  sample.rows = kSampleRows;
  sample.columns = sample.out_stride = kSampleColumns;
  for (int i = 0; status == CUBLAS_STATUS_SUCCESS && i < found; ++i) {
    const cublasLtMatmulHeuristicResult_t& result = results[static_cast<size_t>(i)];
    if (!IsOneChain(result)) continue;
    plan.algorithm = result.algo;
    if (Check(plan, planned).ok() && Check(plan, sample).ok()) return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrCat("cuBLASLt has no algorithm for BF16 products of K = ", k,
                   " without a split of K and without working memory (", found, " offered, ",
                   cublasLtGetStatusString(status), "); ", kSwitch));
}

absl::StatusOr<CublasLtGemm::Plan*> CublasLtGemm::PlanFor(const LinearArgs& args) {
  const std::tuple key(args.x.dim(1), args.out.dtype, args.epilogue == Epilogue::kAdd);
  const auto known = plans_.find(key);
  if (known != plans_.end()) return &known->second;
  Plan plan = {};
  const absl::Status chosen = Choose(args, plan);
  if (!chosen.ok()) {
    if (plan.operation != nullptr) (void)cublasLtMatmulDescDestroy(plan.operation);
    return chosen;
  }
  return &plans_.emplace(key, std::move(plan)).first->second;
}

absl::Status CublasLtGemm::Multiply(CudaState& state, const Plan& plan,
                                    const Product& product) const {
  const Layout w(CUDA_R_16BF, product.k, product.columns, product.w_stride);
  const Layout x(CUDA_R_16BF, product.k, product.rows, product.x_stride);
  const Layout out(product.type(), product.columns, product.rows, product.out_stride);
  for (const Layout* layout : {&w, &x, &out}) {
    BATON_RETURN_IF_ERROR(LtStatus(layout->status(), "cublasLtMatrixLayoutCreate"));
  }
  const float alpha = 1.0f, beta = product.add ? 1.0f : 0.0f;
  return LtStatus(cublasLtMatmul(library_, plan.operation, &alpha, product.w, w.get(), product.x,
                                 x.get(), &beta, product.out, out.get(), product.out, out.get(),
                                 &plan.algorithm, /*workspace=*/nullptr, 0, state.stream()),
                  "cublasLtMatmul");
}

// Rows 0, step, 2 step ... of a product: odd steps for most sizes, so that they stand at different
// places of a tile.
absl::Status CublasLtGemm::Gather(CudaState& state, const Product& product, const void* from,
                                  int64_t stride, int64_t columns, int64_t bytes, void* to,
                                  int64_t to_stride) const {
  const int64_t step = (product.rows - 1) / (kSampleRows - 1);
  return state.Finish(LaunchPadRows({.from = from,
                                     .from_stride = stride * step,
                                     .to = to,
                                     .to_stride = to_stride,
                                     .rows = static_cast<int>(kSampleRows),
                                     .padded_rows = static_cast<int>(kSampleRows),
                                     .columns = static_cast<int>(columns),
                                     .bytes = static_cast<int>(bytes)},
                                    state.stream()),
                      kSampling);
}

// The product, and samples of it by the small one, compared.
absl::Status CublasLtGemm::Compare(CudaState& state, Plan& plan, const Product& product) {
  BATON_RETURN_IF_ERROR(Check(plan, product));
  const int64_t width = std::min(kSampleColumns, product.columns);
  const std::array<int64_t, kSamples> begins = {0, (product.columns - width) / 2,
                                                product.columns - width};
  const int64_t size = product.out_bytes();
  const size_t bytes = static_cast<size_t>(kSampleRows * kSampleColumns * size);
  BATON_ASSIGN_OR_RETURN(char* const small, state.Scratch<char>(kSamples * bytes));
  BATON_ASSIGN_OR_RETURN(char* const large, state.Scratch<char>(kSamples * bytes));
  for (char* const samples : {small, large}) {
    BATON_RETURN_IF_ERROR(
        CudaStatus(cudaMemsetAsync(samples, 0, kSamples * bytes, state.stream()), kSampling));
  }
  BATON_ASSIGN_OR_RETURN(char* const x, state.Scratch<char>(kSampleRows * product.k * 2));
  BATON_RETURN_IF_ERROR(
      Gather(state, product, product.x, product.x_stride, product.k, 2, x, product.k));
  for (size_t i = 0; i < kSamples; ++i) {
    Product sample = product;
    sample.rows = kSampleRows;
    sample.columns = width;
    sample.x = x;
    sample.x_stride = product.k;
    sample.w = product.w + begins[i] * product.w_stride * 2;
    sample.out = small + i * bytes;
    sample.out_stride = kSampleColumns;
    if (product.add) {
      BATON_RETURN_IF_ERROR(Gather(state, product, product.out + begins[i] * size,
                                   product.out_stride, width, size, sample.out, kSampleColumns));
    }
    BATON_RETURN_IF_ERROR(Multiply(state, plan, sample));
  }
  BATON_RETURN_IF_ERROR(Multiply(state, plan, product));
  for (size_t i = 0; i < kSamples; ++i) {
    BATON_RETURN_IF_ERROR(Gather(state, product, product.out + begins[i] * size, product.out_stride,
                                 width, size, large + i * bytes, kSampleColumns));
  }
  std::vector<char> expected(kSamples * bytes), actual(kSamples * bytes);
  BATON_RETURN_IF_ERROR(state.CopyToHost(expected.data(), small, expected.size(), kSampling));
  BATON_RETURN_IF_ERROR(state.CopyToHost(actual.data(), large, actual.size(), kSampling));
  if (actual != expected) {
    return absl::FailedPreconditionError(absl::StrCat(
        "cuBLASLt's product of ", product.rows, " rows, ", product.columns, " columns and K = ",
        product.k, " has other bits than its product of ", kSampleRows, " of these rows and ",
        width, " of these columns, so a request's tokens would depend on its batch; ", kSwitch));
  }
  plan.compared.emplace(product.columns, product.rows);
  return absl::OkStatus();
}

absl::Status CublasLtGemm::RunRows(CudaState& state, Plan& plan, const LinearArgs& args,
                                   int64_t first, int64_t rows) {
  Product product{.rows = PaddedRows(rows),
                  .columns = args.out.dim(1),
                  .k = args.x.dim(1),
                  .x = args.x.as<const char>() + first * args.x.strides[0] * 2,
                  .x_stride = args.x.strides[0],
                  .w = args.w.w.as<const char>(),
                  .w_stride = args.w.w.strides[0],
                  .bf16 = args.out.dtype == DType::kBF16,
                  .add = args.epilogue == Epilogue::kAdd};
  const int64_t size = product.out_bytes();
  char* const out = args.out.as<char>() + first * args.out.strides[0] * size;
  const auto copy = [&](const void* from, int64_t from_stride, void* to, int64_t to_stride,
                        int64_t padded_rows, int64_t columns, int64_t bytes) {
    return state.Finish(LaunchPadRows({.from = from,
                                       .from_stride = from_stride,
                                       .to = to,
                                       .to_stride = to_stride,
                                       .rows = static_cast<int>(rows),
                                       .padded_rows = static_cast<int>(padded_rows),
                                       .columns = static_cast<int>(columns),
                                       .bytes = static_cast<int>(bytes)},
                                      state.stream()),
                        "rows of a product");
  };
  if (product.rows != rows) {
    BATON_ASSIGN_OR_RETURN(char* const padded, state.Scratch<char>(product.rows * product.k * 2));
    BATON_RETURN_IF_ERROR(
        copy(product.x, product.x_stride, padded, product.k, product.rows, product.k, 2));
    product.x = padded;
    product.x_stride = product.k;
  }
  const bool in_place =
      product.rows == rows && Aligned(out) && args.out.strides[0] * size % kAlignment == 0;
  product.out = out;
  product.out_stride = args.out.strides[0];
  if (!in_place) {
    product.out_stride = (product.columns + 7) / 8 * 8;
    BATON_ASSIGN_OR_RETURN(product.out,
                           state.Scratch<char>(product.rows * product.out_stride * size));
    if (product.add) {
      BATON_RETURN_IF_ERROR(copy(out, args.out.strides[0], product.out, product.out_stride,
                                 product.rows, product.columns, size));
    }
  }
  const bool compared = plan.compared.count({product.columns, product.rows}) > 0;
  BATON_RETURN_IF_ERROR(compared ? Multiply(state, plan, product) : Compare(state, plan, product));
  if (in_place) return absl::OkStatus();
  return copy(product.out, product.out_stride, out, args.out.strides[0], rows, product.columns,
              size);
}

absl::Status CublasLtGemm::Run(CudaState& state, const LinearArgs& args) {
  BATON_ASSIGN_OR_RETURN(Plan* const plan, PlanFor(args));
  const int64_t rows = args.out.dim(0), whole = rows / kBlockRows * kBlockRows;
  if (whole > 0) BATON_RETURN_IF_ERROR(RunRows(state, *plan, args, 0, whole));
  if (rows > whole) BATON_RETURN_IF_ERROR(RunRows(state, *plan, args, whole, rows - whole));
  return state.Finish(cudaSuccess, "linear");
}

}  // namespace baton::kernels::cuda
