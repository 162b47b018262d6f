#ifndef BATON_KERNELS_CUDA_COPY_ROWS_H_
#define BATON_KERNELS_CUDA_COPY_ROWS_H_

#include <cstdint>
#include <initializer_list>

#include "kernels/cuda/launch_args.h"

namespace baton::kernels::cuda {

struct CopyRowsLaunch {
  const uint8_t* from = nullptr;
  int64_t from_stride = 0;         // bytes
  const int32_t* index = nullptr;  // [rows] or null
  uint8_t* to = nullptr;
  int64_t to_stride = 0;
  int rows = 0;           // > 0
  int64_t row_bytes = 0;  // > 0
};
// A block for each row.
cudaError_t LaunchCopyRows(const CopyRowsLaunch& args, cudaStream_t stream);

// The widest words, of 16, 4 or 1 bytes, that divide all of these addresses, strides and sizes.
inline int WordBytes(std::initializer_list<int64_t> all) {
  int64_t bits = 0;
  for (const int64_t one : all) bits |= one;
  return bits % 16 == 0 ? 16 : bits % 4 == 0 ? 4 : 1;
}
inline int64_t AddressOf(const void* data) { return reinterpret_cast<int64_t>(data); }

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_COPY_ROWS_H_
