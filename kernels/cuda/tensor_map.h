#ifndef BATON_KERNELS_CUDA_TENSOR_MAP_H_
#define BATON_KERNELS_CUDA_TENSOR_MAP_H_

// A tensor in the GPU's memory, as the copy engine of Hopper takes boxes from it. Made on the host,
// passed as part of a kernel's arguments (BATON_GRID_CONSTANT in device.h).

#include <cuda_runtime_api.h>

#include <cstdint>

namespace baton::kernels::cuda {

// Opaque: CUDA's CUtensorMap.
struct alignas(64) TensorMap {
  uint64_t opaque[16] = {};
};

// Layers of rows of columns, which are BF16 or bytes. A box is 128 bytes of columns wide.
struct TensorShape {
  const void* data = nullptr;  // aligned to 16
  int element_bytes = 2;       // of a column: 1 or 2
  int64_t columns = 0, rows = 0, layers = 0;
  int64_t row_bytes = 0, layer_bytes = 0;  // from one to the next, multiples of 16
  int box_rows = 0;                        // of a box, 1 to 256
};

// Whether it is as CUDA's documentation wants it, which says of strides that each is the one before
// times the extent and some padding: so a multiple, and layers do not overlap.
bool FitsTensorMap(const TensorShape& shape);

// Of a shape that fits. cudaErrorNotSupported where the driver has no such call,
// cudaErrorInvalidValue where it refuses the shape.
cudaError_t MakeTensorMap(const TensorShape& shape, TensorMap* map);

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_TENSOR_MAP_H_
