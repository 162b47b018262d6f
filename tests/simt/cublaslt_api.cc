// The part of cuBLASLt that the project calls, with the declarations of its own header, by loops:
// products of BF16 matrices, and on Hopper of E4M3 matrices with a scale for 128x128 values of a
// and one for 128 of b. A sum takes K in steps of 32 bytes, each exact before it is rounded, as the
// emulated matrix instruction does; of E4M3 values 128 k, times both scales, enter the total. What
// it offers as algorithms has, as the library's own list, some that split K; they sum in another
// order. It refuses what NVIDIA's manual does not promise ("128-element 1D and 128x128 2D block
// scaling for FP8 data types").

#include <cublasLt.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "kernels/cuda/cublaslt_library.h"
#include "kernels/numeric.h"
#include "tests/simt/block.h"
#include "tests/simt/memory.h"
#include "tests/simt/stream.h"
#include "tests/simt/touch.h"

namespace baton::kernels::cuda {

absl::Status LoadCublasLt() { return absl::OkStatus(); }

}  // namespace baton::kernels::cuda

namespace baton::simt {
namespace {

// What the opaque structs hold here.
struct Layout {
  cudaDataType type = CUDA_R_32F;
  int64_t rows = 0, columns = 0, stride = 0;
};
struct Operation {
  cublasOperation_t transposed_a = CUBLAS_OP_N;
  int32_t a_mode = CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
  int32_t b_mode = CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
  const float* a_scales = nullptr;
  const float* b_scales = nullptr;
  int8_t fast = 0;

  bool scaled() const {
    return a_mode != CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F ||
           b_mode != CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F || a_scales != nullptr ||
           b_scales != nullptr;
  }
};
struct Algorithm {
  int32_t splits = 1;
};
static_assert(sizeof(Layout) <= sizeof(cublasLtMatrixLayoutOpaque_t));
static_assert(sizeof(Operation) <= sizeof(cublasLtMatmulDescOpaque_t));

template <typename T, typename Opaque>
T Contents(const Opaque* opaque) {
  T value;
  std::memcpy(static_cast<void*>(&value), opaque, sizeof(value));
  return value;
}

template <typename Opaque, typename T>
Opaque* NewOpaque(const T& contents) {
  auto* const opaque = new Opaque();
  std::memcpy(opaque, &contents, sizeof(contents));
  return opaque;
}

int64_t BytesOf(cudaDataType type) {
  if (type == CUDA_R_8F_E4M3) return 1;
  return type == CUDA_R_16BF ? 2 : 4;
}

bool Aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

struct Product {
  const char* a = nullptr;  // BF16 or E4M3 [k, m], column after column
  const char* b = nullptr;  // [k, n]
  const char* c = nullptr;
  char* d = nullptr;                // [m, n]
  const float* a_scales = nullptr;  // E4M3: [blocks of 128 k, to a multiple of 4; blocks of 128 m]
  const float* b_scales = nullptr;  // E4M3: [n, blocks of 128 k]
  Layout a_layout, b_layout, d_layout;
  float alpha = 1, beta = 0;
  int splits = 1;

  int64_t m() const { return d_layout.rows; }
  int64_t n() const { return d_layout.columns; }
  int64_t k() const { return a_layout.rows; }
  int64_t d_bytes() const { return BytesOf(d_layout.type); }
  bool codes() const { return a_layout.type == CUDA_R_8F_E4M3; }
  int64_t blocks() const { return (k() + 127) / 128; }
  int64_t padded_blocks() const { return (blocks() + 3) / 4 * 4; }
};

// What the manual asks of E4M3 matrices with these modes of scales.
bool TakesCodes(const Operation& operation, const Layout& a, const Layout& d) {
  const Options options = Runtime::Get().options();
  return options.compute_major == 9 && options.compute_minor == 0 && operation.fast == 0 &&
         operation.a_mode == CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F &&
         operation.b_mode == CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F &&
         operation.a_scales != nullptr && Aligned(operation.a_scales) &&
         operation.b_scales != nullptr && Aligned(operation.b_scales) && a.rows % 16 == 0 &&
         d.rows % 4 == 0 && d.columns % 4 == 0 && d.rows * BytesOf(d.type) % 16 == 0;
}

bool Takes(const Operation& operation, const Layout& a, const Layout& b, const Layout& c,
           const Layout& d) {
  const auto aligned = [](const Layout& layout) {
    return layout.stride >= layout.rows && layout.stride * BytesOf(layout.type) % 16 == 0;
  };
  const bool fits = operation.transposed_a == CUBLAS_OP_T && a.type == b.type &&
                    (d.type == CUDA_R_32F || d.type == CUDA_R_16BF) && c.type == d.type &&
                    a.rows == b.rows && a.columns == d.rows && b.columns == d.columns &&
                    c.rows == d.rows && c.columns == d.columns && aligned(a) && aligned(b) &&
                    aligned(d);
  if (!fits) return false;
  if (a.type == CUDA_R_8F_E4M3) return TakesCodes(operation, a, d);
  return a.type == CUDA_R_16BF && !operation.scaled();
}

double Element(const Product& p, const char* data, int64_t index) {
  if (p.codes()) return double{kernels::F8E4M3ToF32(static_cast<uint8_t>(data[index]))};
  uint16_t bits;
  std::memcpy(&bits, data + index * 2, sizeof(bits));
  return double{kernels::Bf16ToF32(bits)};
}

float Sum(const Product& p, int64_t i, int64_t j, int64_t begin, int64_t end) {
  const int64_t step = p.codes() ? 32 : 16;
  float sum = 0;
  for (int64_t k = begin; k < end; k += step) {
    double exact = 0;
    for (int64_t l = k; l < std::min(k + step, end); ++l) {
      exact +=
          Element(p, p.a, i * p.a_layout.stride + l) * Element(p, p.b, j * p.b_layout.stride + l);
    }
    sum = static_cast<float>(sum + exact);
  }
  return sum;
}

// The same of E4M3 values; begins where a block does.
float ScaledSum(const Product& p, int64_t i, int64_t j, int64_t begin, int64_t end) {
  float total = 0;
  for (int64_t k = begin; k < end; k += 128) {
    const float scale =
        p.a_scales[i / 128 * p.padded_blocks() + k / 128] * p.b_scales[k / 128 * p.n() + j];
    total = std::fma(Sum(p, i, j, k, std::min(k + 128, end)), scale, total);
  }
  return total;
}

void Store(const Product& p, int64_t i, int64_t j) {
  const int64_t unit = p.codes() ? 128 : 1;
  const int64_t part = (p.k() + p.splits * unit - 1) / (p.splits * unit) * unit;
  float sum = 0;
  for (int64_t begin = 0; begin < p.k(); begin += part) {
    const int64_t end = std::min(begin + part, p.k());
    sum += p.codes() ? ScaledSum(p, i, j, begin, end) : Sum(p, i, j, begin, end);
  }
  const int64_t at = (j * p.d_layout.stride + i) * p.d_bytes();
  float value = p.alpha * sum;
  if (p.beta != 0) {
    float before;
    std::memcpy(&before, p.c + at, sizeof(before));  // C is F32 where it is used
    value += p.beta * before;
  }
  if (p.d_bytes() == 2) {
    const uint16_t bits = kernels::F32ToBf16(value);
    std::memcpy(p.d + at, &bits, sizeof(bits));
  } else {
    std::memcpy(p.d + at, &value, sizeof(value));
  }
}

bool Run(uint32_t op, const Product& p) {
  constexpr char kWhat[] = "cublasLtMatmul";
  const auto reads = [&](const void* data, int64_t bytes) {
    const auto size = static_cast<size_t>(bytes);
    if (!Touch(op, data, size, false, kWhat)) return false;
    const Memory& memory = Memory::Get();
    const void* const bad =
        memory.Contains(data) ? memory.FirstWithout(data, size, kInitialized) : nullptr;
    if (bad == nullptr) return true;
    ReportFault({.kind = FaultKind::kUninitialized,
                 .what = std::string(kWhat) + " reads " + memory.Describe(bad) +
                         ", which nothing has written",
                 .kernel = {},
                 .where = {}});
    return false;
  };
  const auto reads_matrix = [&](const char* data, const Layout& layout) {
    const int64_t size = BytesOf(layout.type);
    for (int64_t column = 0; column < layout.columns; ++column) {
      if (!reads(data + column * layout.stride * size, layout.rows * size)) return false;
    }
    return true;
  };
  if (!reads_matrix(p.a, p.a_layout) || !reads_matrix(p.b, p.b_layout)) return true;
  if (p.beta != 0 && !reads_matrix(p.c, p.d_layout)) return true;
  // The whole of the layouts, that is, what pads them too.
  if (p.codes() && (!reads(p.a_scales, (p.m() + 127) / 128 * p.padded_blocks() * 4) ||
                    !reads(p.b_scales, p.n() * p.blocks() * 4))) {
    return true;
  }
  for (int64_t j = 0; j < p.n(); ++j) {
    char* const column = p.d + j * p.d_layout.stride * p.d_bytes();
    const auto bytes = static_cast<size_t>(p.m() * p.d_bytes());
    if (!Touch(op, column, bytes, true, kWhat)) return true;
    for (int64_t i = 0; i < p.m(); ++i) Store(p, i, j);
    Memory::Get().AddMark(column, bytes, kInitialized);
  }
  return true;
}

}  // namespace
}  // namespace baton::simt

using baton::simt::Algorithm;
using baton::simt::Contents;
using baton::simt::Layout;
using baton::simt::NewOpaque;
using baton::simt::Operation;
using baton::simt::Runtime;

extern "C" {

const char* cublasLtGetStatusString(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "success";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "invalid value";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "not supported";
    default:
      return "another cublasStatus";
  }
}
cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  *handle = reinterpret_cast<cublasLtHandle_t>(new int(0));
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete reinterpret_cast<int*>(handle);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
  *desc = NewOpaque<cublasLtMatmulDescOpaque_t>(Operation{});
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  delete desc;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t bytes) {
  Operation operation = Contents<Operation>(desc);
  const auto set = [&](auto& field) {
    if (bytes != sizeof(field)) return CUBLAS_STATUS_INVALID_VALUE;
    std::memcpy(&field, value, bytes);
    std::memcpy(static_cast<void*>(desc), &operation, sizeof(operation));
    return CUBLAS_STATUS_SUCCESS;
  };
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return set(operation.transposed_a);
    case CUBLASLT_MATMUL_DESC_FAST_ACCUM:
      return set(operation.fast);
    case CUBLASLT_MATMUL_DESC_A_SCALE_MODE:
      return set(operation.a_mode);
    case CUBLASLT_MATMUL_DESC_B_SCALE_MODE:
      return set(operation.b_mode);
    case CUBLASLT_MATMUL_DESC_A_SCALE_POINTER:
      return set(operation.a_scales);
    case CUBLASLT_MATMUL_DESC_B_SCALE_POINTER:
      return set(operation.b_scales);
    default:
      return CUBLAS_STATUS_INVALID_VALUE;
  }
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type,
                                          uint64_t rows, uint64_t columns, int64_t stride) {
  *layout = NewOpaque<cublasLtMatrixLayoutOpaque_t>(Layout{.type = type,
                                                           .rows = static_cast<int64_t>(rows),
                                                           .columns = static_cast<int64_t>(columns),
                                                           .stride = stride});
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = new cublasLtMatmulPreferenceOpaque_t();
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void*, size_t bytes) {
  const size_t expected = attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES ? 8 : 4;
  return bytes == expected ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t desc,
                                       cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t*,
                                       cublasLtMatmulHeuristicResult_t* result) {
  *result = {};
  const bool taken =
      baton::simt::Takes(Contents<Operation>(desc), Contents<Layout>(a), Contents<Layout>(b),
                         Contents<Layout>(c), Contents<Layout>(d));
  result->state = taken ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
  return result->state;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t, int most,
                                              cublasLtMatmulHeuristicResult_t results[],
                                              int* count) {
  *count = 0;
  cublasLtMatmulHeuristicResult_t checked = {};
  const cublasStatus_t status =
      cublasLtMatmulAlgoCheck(handle, desc, a, b, c, d, nullptr, &checked);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  const bool only_splits = Runtime::Get().options().cublaslt == baton::simt::CublasLt::kOnlySplits;
  for (const int32_t splits : {4, only_splits ? 2 : 1}) {
    if (*count == most) break;
    const Algorithm algorithm{.splits = splits};
    std::memcpy(&checked.algo, &algorithm, sizeof(algorithm));
    results[(*count)++] = checked;
  }
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t* algorithm,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute,
                                                    void* value, size_t bytes, size_t* written) {
  const uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_NONE;
  const Algorithm contents = Contents<Algorithm>(algorithm);
  const void* from = nullptr;
  if (attribute == CUBLASLT_ALGO_CONFIG_SPLITK_NUM) from = &contents.splits;
  if (attribute == CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME) from = &reduction;
  if (from == nullptr || bytes != 4) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(value, from, bytes);
  *written = bytes;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                              cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,
                              cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t* algorithm, void*, size_t,
                              cudaStream_t stream) {
  cublasLtMatmulHeuristicResult_t checked = {};
  const cublasStatus_t status = cublasLtMatmulAlgoCheck(handle, desc, a_layout, b_layout, c_layout,
                                                        d_layout, algorithm, &checked);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  for (const void* data : {a, b, c, static_cast<const void*>(d)}) {
    if (!baton::simt::Aligned(data)) return CUBLAS_STATUS_INVALID_VALUE;
  }
  const Operation operation = Contents<Operation>(desc);
  baton::simt::Product product{.a = static_cast<const char*>(a),
                               .b = static_cast<const char*>(b),
                               .c = static_cast<const char*>(c),
                               .d = static_cast<char*>(d),
                               .a_scales = operation.a_scales,
                               .b_scales = operation.b_scales,
                               .a_layout = Contents<Layout>(a_layout),
                               .b_layout = Contents<Layout>(b_layout),
                               .d_layout = Contents<Layout>(d_layout),
                               .splits = Contents<Algorithm>(algorithm).splits};
  std::memcpy(&product.alpha, alpha, sizeof(float));
  std::memcpy(&product.beta, beta, sizeof(float));
  // A fault on purpose: the library takes another way for many rows.
  const bool varies = Runtime::Get().options().cublaslt == baton::simt::CublasLt::kVaries;
  if (varies && product.n() > 64) product.splits = 3;
  const cudaError_t enqueued = Runtime::Get().Enqueue(
      stream, [product](uint32_t op) { return baton::simt::Run(op, product); });
  return enqueued == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

}  // extern "C"
