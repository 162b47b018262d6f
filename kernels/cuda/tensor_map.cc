#include "kernels/cuda/tensor_map.h"

#include <cuda.h>

#include <algorithm>
#include <cstring>

namespace baton::kernels::cuda {
namespace {

constexpr unsigned kDriverVersion = 12000;  // the first that has the call
constexpr int kBoxBytes = 128;              // of columns: what the swizzle spans

// The driver's library is not linked: programs must start where there is none.
decltype(&cuTensorMapEncodeTiled) Encoder() {
  static const auto encoder = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
    const cudaError_t error = cudaGetDriverEntryPointByVersion(
        "cuTensorMapEncodeTiled", &function, kDriverVersion, cudaEnableDefault, &result);
    if (error != cudaSuccess || result != cudaDriverEntryPointSuccess) function = nullptr;
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  return encoder;
}

}  // namespace

bool FitsTensorMap(const TensorShape& shape) {
  constexpr int64_t kMostExtent = int64_t{1} << 31;  // coordinates are 32 bits with a sign
  constexpr int64_t kStrideBound = int64_t{1} << 40;
  const auto extents = {shape.columns, shape.rows, shape.layers};
  return shape.data != nullptr && reinterpret_cast<uintptr_t>(shape.data) % 16 == 0 &&
         std::all_of(extents.begin(), extents.end(),
                     [](int64_t extent) { return extent > 0 && extent < kMostExtent; }) &&
         shape.row_bytes > 0 && shape.row_bytes % 16 == 0 &&
         shape.row_bytes >= shape.columns * shape.element_bytes &&
         shape.layer_bytes % shape.row_bytes == 0 &&
         shape.layer_bytes / shape.row_bytes >= shape.rows && shape.layer_bytes < kStrideBound &&
         shape.box_rows > 0 && shape.box_rows <= 256;
}

cudaError_t MakeTensorMap(const TensorShape& shape, TensorMap* map) {
  const auto encode = Encoder();
  if (encode == nullptr) return cudaErrorNotSupported;
  const auto whole = [](int64_t value) { return static_cast<cuuint64_t>(value); };
  const cuuint64_t sizes[3] = {whole(shape.columns), whole(shape.rows), whole(shape.layers)};
  const cuuint64_t strides[2] = {whole(shape.row_bytes), whole(shape.layer_bytes)};
  const cuuint32_t box[3] = {static_cast<cuuint32_t>(kBoxBytes / shape.element_bytes),
                             static_cast<cuuint32_t>(shape.box_rows), 1};
  const cuuint32_t steps[3] = {1, 1, 1};
  CUtensorMap made;
  static_assert(sizeof(made) == sizeof(map->opaque));
  const CUresult result = encode(
      &made,
      shape.element_bytes == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
      3, const_cast<void*>(shape.data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) return cudaErrorInvalidValue;
  std::memcpy(map->opaque, &made, sizeof(made));
  return cudaSuccess;
}

}  // namespace baton::kernels::cuda
