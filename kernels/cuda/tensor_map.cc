#include "kernels/cuda/tensor_map.h"

#include <cuda.h>

#include <cstring>

namespace baton::kernels::cuda {
namespace {

constexpr unsigned kDriverVersion = 12000;  // the first that has the call

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

cudaError_t MakeTensorMap(const TensorShape& shape, TensorMap* map) {
  const auto encode = Encoder();
  if (encode == nullptr) return cudaErrorNotSupported;
  const auto whole = [](int64_t value) { return static_cast<cuuint64_t>(value); };
  const cuuint64_t sizes[3] = {whole(shape.columns), whole(shape.rows), whole(shape.layers)};
  const cuuint64_t strides[2] = {whole(shape.row_bytes), whole(shape.layer_bytes)};
  const cuuint32_t box[3] = {64, static_cast<cuuint32_t>(shape.box_rows), 1};
  const cuuint32_t steps[3] = {1, 1, 1};
  CUtensorMap made;
  static_assert(sizeof(made) == sizeof(map->opaque));
  const CUresult result =
      encode(&made, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(shape.data), sizes,
             strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) return cudaErrorInvalidValue;
  std::memcpy(map->opaque, &made, sizeof(made));
  return cudaSuccess;
}

}  // namespace baton::kernels::cuda
