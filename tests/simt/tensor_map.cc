#include "tests/simt/tensor_map.h"

#include <cuda.h>

#include <cstring>

namespace baton::simt {
namespace {

struct Encoded {
  uint64_t mark;
  TensorBox box;
};
static_assert(sizeof(Encoded) <= sizeof(CUtensorMap));
constexpr uint64_t kMark = 0x3170616D726F7374;

// As the driver: INVALID_VALUE for what the copy engine cannot do, and for strides that CUDA's
// documentation does not describe.
CUresult EncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                     const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                     const cuuint32_t* steps, CUtensorMapInterleave interleave,
                     CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  const uint64_t element = type == CU_TENSOR_MAP_DATA_TYPE_UINT8 ? 1 : 2;
  const bool known = (element == 1 || type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16) && rank == 3 &&
                     interleave == CU_TENSOR_MAP_INTERLEAVE_NONE &&
                     swizzle == CU_TENSOR_MAP_SWIZZLE_128B;
  if (!known) return CUDA_ERROR_NOT_SUPPORTED;
  bool good = reinterpret_cast<uintptr_t>(map) % 64 == 0 &&
              reinterpret_cast<uintptr_t>(address) % 16 == 0 && box[0] * element == 128;
  for (int i = 0; i < 3; ++i) {
    good = good && sizes[i] > 0 && sizes[i] <= uint64_t{1} << 32 && box[i] > 0 && box[i] <= 256 &&
           steps[i] == 1;
  }
  for (int i = 0; i < 2; ++i) {
    good = good && strides[i] % 16 == 0 && strides[i] > 0 && strides[i] < uint64_t{1} << 40;
  }
  good = good && strides[0] >= sizes[0] * element && strides[1] % strides[0] == 0 &&
         strides[1] >= strides[0] * sizes[1];
  if (!good) return CUDA_ERROR_INVALID_VALUE;
  const Encoded encoded{.mark = kMark,
                        .box = {.data = static_cast<const char*>(address),
                                .element_bytes = static_cast<int64_t>(element),
                                .columns = static_cast<int64_t>(sizes[0]),
                                .rows = static_cast<int64_t>(sizes[1]),
                                .layers = static_cast<int64_t>(sizes[2]),
                                .row_bytes = static_cast<int64_t>(strides[0]),
                                .layer_bytes = static_cast<int64_t>(strides[1]),
                                .box_rows = static_cast<int64_t>(box[1])}};
  std::memcpy(map, &encoded, sizeof(encoded));
  return CUDA_SUCCESS;
}

}  // namespace

std::string ReadTensorMap(const void* map, TensorBox* box) {
  if (reinterpret_cast<uintptr_t>(map) % 64 != 0) return "a tensor map that is not aligned to 64";
  Encoded encoded;
  std::memcpy(&encoded, map, sizeof(encoded));
  if (encoded.mark != kMark) return "what is given as a tensor map is none";
  *box = encoded.box;
  return "";
}

void* DriverFunction(const std::string& name) {
  return name == "cuTensorMapEncodeTiled" ? reinterpret_cast<void*>(&EncodeTiled) : nullptr;
}

}  // namespace baton::simt
