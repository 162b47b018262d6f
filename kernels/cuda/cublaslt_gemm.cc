#include "kernels/cuda/cublaslt_gemm.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "kernels/cuda/cublaslt_library.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/pad_rows.h"
#include "kernels/cuda/place_scales.h"

namespace baton::kernels::cuda {
namespace {

constexpr int64_t kBlockRows = 128;
constexpr int64_t kLeastRows = 16;
constexpr int64_t kScaleBlock = 128;  // rows of a weight and columns that a scale is for
// Of E4M3 weights, columns of a call are a multiple of this: outputs of any type then begin at
// multiples of 16 bytes, which the library wants of these products.
constexpr int64_t kCodeColumns = 16;
constexpr int64_t kSampleRows = CublasLtPlan::kSampleRows;
constexpr int64_t kSampleColumns = CublasLtPlan::kSampleColumns;
constexpr size_t kSamples = 3;  // the first columns, some in the middle, the last
constexpr char kSampling[] = "samples of a product";
constexpr char kCopying[] = "rows of a product";
constexpr uint32_t kAlignment = 16;

bool Aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % kAlignment == 0; }

bool RowsAligned(const TensorView& view) {
  return Aligned(view.data) &&
         static_cast<size_t>(view.strides[0]) * DTypeBytes(view.dtype) % kAlignment == 0;
}

int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// The number of rows that the library sees; `rows` is a multiple of kBlockRows or less than it.
int64_t PaddedRows(int64_t rows) {
  int64_t padded = kLeastRows;
  while (padded < std::min(rows, kBlockRows)) padded *= 2;
  return std::max(padded, rows);
}

// LaunchPadRows, in elements of `unit` bytes: 2 or 4.
struct RowCopy {
  const void* from = nullptr;
  int64_t from_stride = 0;
  void* to = nullptr;
  int64_t to_stride = 0;
  int64_t rows = 0, padded_rows = 0;
  int64_t columns = 0;
  int64_t unit = 4;
};

absl::Status Copy(CudaState& state, const RowCopy& copy, const char* what) {
  return state.Finish(LaunchPadRows({.from = copy.from,
                                     .from_stride = copy.from_stride,
                                     .to = copy.to,
                                     .to_stride = copy.to_stride,
                                     .rows = static_cast<int>(copy.rows),
                                     .padded_rows = static_cast<int>(copy.padded_rows),
                                     .columns = static_cast<int>(copy.columns),
                                     .bytes = static_cast<int>(copy.unit)},
                                    state.stream()),
                      what);
}

// Rows of x or w, side by side, with rows of zeros behind them.
absl::StatusOr<const char*> PadInput(CudaState& state, const CublasLtKind& kind, const char* from,
                                     int64_t stride, int64_t rows, int64_t padded_rows) {
  const int64_t size = kind.element_bytes(), unit = kind.codes ? 4 : 2, each = unit / size;
  BATON_ASSIGN_OR_RETURN(char* const padded, state.Scratch<char>(padded_rows * kind.k * size));
  BATON_RETURN_IF_ERROR(Copy(state,
                             {.from = from,
                              .from_stride = stride / each,
                              .to = padded,
                              .to_stride = kind.k / each,
                              .rows = rows,
                              .padded_rows = padded_rows,
                              .columns = kind.k / each,
                              .unit = unit},
                             kCopying));
  return padded;
}

// The weight's scales as the library reads them: as they are where its blocks of rows lie a
// multiple of four scales apart already, as with every K of DeepSeek-V3.
absl::StatusOr<const float*> WeightScales(CudaState& state, const CublasLtKind& kind,
                                          const TensorView& scales) {
  const int64_t padded = kind.padded_scales();
  if (kind.scales() == padded && scales.strides[0] == padded && Aligned(scales.data)) {
    return scales.as<const float>();
  }
  BATON_ASSIGN_OR_RETURN(float* const placed, state.Scratch<float>(scales.dim(0) * padded));
  const PlaceScalesLaunch launch{.from = scales.as<const float>(),
                                 .from_row = scales.strides[0],
                                 .to = placed,
                                 .to_row = padded,
                                 .rows = static_cast<int>(scales.dim(0)),
                                 .columns = static_cast<int>(kind.scales()),
                                 .padded_rows = static_cast<int>(scales.dim(0)),
                                 .padded_columns = static_cast<int>(padded)};
  BATON_RETURN_IF_ERROR(state.Finish(LaunchPlaceScales(launch, state.stream()), kCopying));
  return placed;
}

// Scales of rows `row_stride` apart to [scales, padded_rows].
absl::StatusOr<const float*> RowScales(CudaState& state, const CublasLtKind& kind,
                                       const float* from, int64_t row_stride, int64_t column_stride,
                                       int64_t rows, int64_t padded_rows) {
  BATON_ASSIGN_OR_RETURN(float* const placed, state.Scratch<float>(kind.scales() * padded_rows));
  const PlaceScalesLaunch launch{.from = from,
                                 .from_row = row_stride,
                                 .from_column = column_stride,
                                 .to = placed,
                                 .to_row = 1,
                                 .to_column = padded_rows,
                                 .rows = static_cast<int>(rows),
                                 .columns = static_cast<int>(kind.scales()),
                                 .padded_rows = static_cast<int>(padded_rows),
                                 .padded_columns = static_cast<int>(kind.scales())};
  BATON_RETURN_IF_ERROR(state.Finish(LaunchPlaceScales(launch, state.stream()), kCopying));
  return placed;
}

struct Piece {
  int64_t begin = 0, end = 0;  // of the weight's rows
};

// What one call each computes. Of an E4M3 weight a piece begins where a block of scales does, or
// lies within one, and is a multiple of kCodeColumns or less than it: a rank's heads may begin
// anywhere in a block, and must have the bits of the whole matrix.
std::vector<Piece> PiecesOf(const LinearArgs& args, const CublasLtKind& kind) {
  const int64_t n = args.out.dim(1);
  if (!kind.codes) return {{0, n}};
  const int64_t first = args.w.first_row;
  const int64_t block = first == 0 ? 0 : std::min(kScaleBlock - first, n);
  std::vector<Piece> pieces;
  for (const auto& [begin, end] : {std::pair{int64_t{0}, block}, {block, n}}) {
    const int64_t whole = begin + (end - begin) / kCodeColumns * kCodeColumns;
    if (whole > begin) pieces.push_back({begin, whole});
    if (end > whole) pieces.push_back({whole, end});
  }
  return pieces;
}

// Outputs of rows 0, step, 2 step ... of a product, from column `begin` on: odd steps for most
// sizes, so that they stand at different places of a tile.
absl::Status GatherOutputs(CudaState& state, const CublasLtKind& kind,
                           const CublasLtProduct& product, int64_t begin, int64_t width, char* to) {
  const int64_t step = (product.rows - 1) / (kSampleRows - 1);
  return Copy(state,
              {.from = product.out + begin * kind.out_bytes(),
               .from_stride = product.out_stride * step,
               .to = to,
               .to_stride = kSampleColumns,
               .rows = kSampleRows,
               .padded_rows = kSampleRows,
               .columns = width,
               .unit = kind.out_bytes()},
              kSampling);
}

// The rows of the small product, with their scales.
absl::StatusOr<CublasLtProduct> SampleOf(CudaState& state, const CublasLtKind& kind,
                                         const CublasLtProduct& product) {
  const int64_t step = (product.rows - 1) / (kSampleRows - 1);
  CublasLtProduct sample = product;
  sample.rows = kSampleRows;
  sample.columns = std::min(kSampleColumns, product.columns);
  sample.x_stride = kind.k;
  sample.out_stride = kSampleColumns;
  BATON_ASSIGN_OR_RETURN(sample.x, PadInput(state, kind, product.x, product.x_stride * step,
                                            kSampleRows, kSampleRows));
  if (!kind.codes) return sample;
  BATON_ASSIGN_OR_RETURN(sample.x_scales, RowScales(state, kind, product.x_scales, step,
                                                    product.rows, kSampleRows, kSampleRows));
  return sample;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CublasLtGemm>> CublasLtGemm::Create() {
  BATON_RETURN_IF_ERROR(LoadCublasLt());
  std::unique_ptr<CublasLtGemm> gemm(new CublasLtGemm);
  BATON_ASSIGN_OR_RETURN(gemm->verdicts_, CublasLtVerdicts::Create());
  const cublasStatus_t status = cublasLtCreate(&gemm->library_);
  if (status == CUBLAS_STATUS_SUCCESS) return gemm;
  return absl::InternalError(absl::StrCat("cublasLtCreate: ", cublasLtGetStatusString(status)));
}

CublasLtGemm::~CublasLtGemm() {
  plans_.clear();
  if (library_ != nullptr) (void)cublasLtDestroy(library_);
}

bool CublasLtGemm::Takes(const CudaState& state, const LinearArgs& args) {
  const int64_t k = args.x.dim(1);
  if (args.epilogue == Epilogue::kSiluMul || args.x.dtype != args.w.w.dtype ||
      !RowsAligned(args.x) || !RowsAligned(args.w.w)) {
    return false;
  }
  if (args.x.dtype == DType::kBF16) return k % 8 == 0;
  return args.x.dtype == DType::kF8E4M3 && state.architecture() == 90 &&
         args.w.block_n == kScaleBlock && args.w.block_k == kScaleBlock && k % kScaleBlock == 0;
}

absl::StatusOr<CublasLtPlan*> CublasLtGemm::PlanFor(const CublasLtKind& kind,
                                                    const CublasLtProduct& like) {
  const auto known = plans_.find(kind);
  if (known != plans_.end()) return known->second.get();
  BATON_ASSIGN_OR_RETURN(std::unique_ptr<CublasLtPlan> plan,
                         CublasLtPlan::Choose(library_, kind, like));
  return plans_.emplace(kind, std::move(plan)).first->second.get();
}

absl::Status CublasLtGemm::Compare(CudaState& state, CublasLtPlan& plan,
                                   const CublasLtProduct& product) {
  const CublasLtKind& kind = plan.kind();
  if (state.recording()) {
    return absl::FailedPreconditionError(absl::StrCat("a product of ", product.rows, " rows, ",
                                                      product.columns, " columns and K = ", kind.k,
                                                      " is first met among ops that are recorded"));
  }
  BATON_RETURN_IF_ERROR(plan.Check(product));
  BATON_ASSIGN_OR_RETURN(CublasLtProduct sample, SampleOf(state, kind, product));
  const int64_t width = sample.columns;
  // Columns of a sample of E4M3 weights have one block of scales.
  const std::array<int64_t, kSamples> begins = {
      0, (product.columns - width) / 2 / kCodeColumns * kCodeColumns, product.columns - width};
  const size_t bytes = static_cast<size_t>(kSampleRows * kSampleColumns * kind.out_bytes());
  BATON_ASSIGN_OR_RETURN(char* const small, state.Scratch<char>(kSamples * bytes));
  BATON_ASSIGN_OR_RETURN(char* const large, state.Scratch<char>(kSamples * bytes));
  for (char* const samples : {small, large}) {
    BATON_RETURN_IF_ERROR(
        CudaStatus(cudaMemsetAsync(samples, 0, kSamples * bytes, state.stream()), kSampling));
  }
  for (size_t i = 0; i < kSamples; ++i) {
    sample.w = product.w + begins[i] * product.w_stride * kind.element_bytes();
    if (kind.codes) {
      sample.w_scales = product.w_scales + begins[i] / kScaleBlock * kind.padded_scales();
    }
    sample.out = small + i * bytes;
    if (kind.add) {
      BATON_RETURN_IF_ERROR(GatherOutputs(state, kind, product, begins[i], width, sample.out));
    }
    BATON_RETURN_IF_ERROR(plan.Multiply(sample, state.stream()));
  }
  BATON_RETURN_IF_ERROR(plan.Multiply(product, state.stream()));
  for (size_t i = 0; i < kSamples; ++i) {
    BATON_RETURN_IF_ERROR(GatherOutputs(state, kind, product, begins[i], width, large + i * bytes));
  }
  std::string what =
      absl::StrCat("cuBLASLt's product of ", product.rows, " rows, ", product.columns,
                   " columns and K = ", kind.k, " has other bits than its product of ", kSampleRows,
                   " of these rows and ", width, " of these columns");
  return verdicts_->Expect(plan, product, small, large, kSamples * bytes, std::move(what),
                           state.stream());
}

absl::Status CublasLtGemm::RunPiece(CudaState& state, CublasLtPlan& plan, CublasLtProduct product,
                                    const TensorView& out) {
  const CublasLtKind& kind = plan.kind();
  const int64_t rows = out.dim(0), columns = out.dim(1), size = kind.out_bytes();
  const int64_t out_stride = out.strides[0];
  const bool in_place = product.rows == rows && product.columns == columns && Aligned(out.data) &&
                        out_stride * size % kAlignment == 0;
  product.out = out.as<char>();
  product.out_stride = out_stride;
  if (!in_place) {
    product.out_stride = RoundUp(product.columns, 8);
    const int64_t bytes = product.rows * product.out_stride * size;
    BATON_ASSIGN_OR_RETURN(product.out, state.Scratch<char>(bytes));
    if (kind.add) {
      if (product.columns != columns) {
        BATON_RETURN_IF_ERROR(CudaStatus(
            cudaMemsetAsync(product.out, 0, static_cast<size_t>(bytes), state.stream()), kCopying));
      }
      BATON_RETURN_IF_ERROR(Copy(state,
                                 {.from = out.data,
                                  .from_stride = out_stride,
                                  .to = product.out,
                                  .to_stride = product.out_stride,
                                  .rows = rows,
                                  .padded_rows = product.rows,
                                  .columns = columns,
                                  .unit = size},
                                 kCopying));
    }
  }
  BATON_RETURN_IF_ERROR(plan.Compared(product) ? plan.Multiply(product, state.stream())
                                               : Compare(state, plan, product));
  if (in_place) return absl::OkStatus();
  return Copy(state,
              {.from = product.out,
               .from_stride = product.out_stride,
               .to = out.data,
               .to_stride = out_stride,
               .rows = rows,
               .padded_rows = rows,
               .columns = columns,
               .unit = size},
              kCopying);
}

absl::Status CublasLtGemm::RunRows(CudaState& state, const LinearArgs& args,
                                   const CublasLtKind& kind, const float* w_scales, int64_t first,
                                   int64_t rows) {
  const int64_t size = kind.element_bytes();
  CublasLtProduct product{.rows = PaddedRows(rows),
                          .x = args.x.as<const char>() + first * args.x.strides[0] * size,
                          .x_stride = args.x.strides[0]};
  if (product.rows != rows) {
    BATON_ASSIGN_OR_RETURN(product.x,
                           PadInput(state, kind, product.x, product.x_stride, rows, product.rows));
    product.x_stride = kind.k;
  }
  if (kind.codes) {
    const int64_t stride = args.x_scales.strides[0];
    BATON_ASSIGN_OR_RETURN(product.x_scales,
                           RowScales(state, kind, args.x_scales.as<const float>() + first * stride,
                                     stride, 1, rows, product.rows));
  }
  const TensorView out = args.out.Slice(0, first, first + rows);
  for (const Piece& piece : PiecesOf(args, kind)) {
    const int64_t columns = piece.end - piece.begin;
    product.columns = columns;
    product.w = args.w.w.as<const char>() + piece.begin * args.w.w.strides[0] * size;
    product.w_stride = args.w.w.strides[0];
    if (kind.codes) {
      const int64_t block = (args.w.first_row + piece.begin) / kScaleBlock;
      product.w_scales = w_scales + block * kind.padded_scales();
      product.columns = RoundUp(columns, kCodeColumns);
    }
    if (product.columns != columns) {
      BATON_ASSIGN_OR_RETURN(
          product.w, PadInput(state, kind, product.w, product.w_stride, columns, product.columns));
      product.w_stride = kind.k;
    }
    BATON_ASSIGN_OR_RETURN(CublasLtPlan* const plan, PlanFor(kind, product));
    BATON_RETURN_IF_ERROR(RunPiece(state, *plan, product, out.Slice(1, piece.begin, piece.end)));
  }
  return absl::OkStatus();
}

absl::Status CublasLtGemm::Run(CudaState& state, const LinearArgs& args) {
  if (!state.recording()) BATON_RETURN_IF_ERROR(TakeVerdicts());
  const CublasLtKind kind{.k = args.x.dim(1),
                          .codes = args.x.dtype == DType::kF8E4M3,
                          .bf16 = args.out.dtype == DType::kBF16,
                          .add = args.epilogue == Epilogue::kAdd};
  const float* w_scales = nullptr;
  if (kind.codes) {
    BATON_ASSIGN_OR_RETURN(w_scales, WeightScales(state, kind, args.w.scales));
  }
  const int64_t rows = args.out.dim(0), whole = rows / kBlockRows * kBlockRows;
  if (whole > 0) BATON_RETURN_IF_ERROR(RunRows(state, args, kind, w_scales, 0, whole));
  if (rows > whole) {
    BATON_RETURN_IF_ERROR(RunRows(state, args, kind, w_scales, whole, rows - whole));
  }
  return state.Finish(cudaSuccess, "linear");
}

}  // namespace baton::kernels::cuda
