#include "tests/simt/nccl_reduce.h"

#include <cuda_bf16.h>

#include <algorithm>
#include <cstring>

namespace baton::simt {

size_t DTypeBytes(ncclDataType_t dtype) {
  switch (dtype) {
    case ncclInt8:
    case ncclUint8:
    case ncclFloat8e4m3:
    case ncclFloat8e5m2:
      return 1;
    case ncclFloat16:
    case ncclBfloat16:
      return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32:
      return 4;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64:
      return 8;
    default:
      return 0;
  }
}

namespace {

template <typename T, typename Wide>
void ReduceAs(const std::vector<std::vector<char>>& terms, void* out, size_t bytes, bool is_max) {
  for (size_t i = 0; i < bytes / sizeof(T); ++i) {
    Wide sum{};
    for (size_t rank = 0; rank < terms.size(); ++rank) {
      T value;
      std::memcpy(&value, terms[rank].data() + i * sizeof(T), sizeof(T));
      const Wide term = static_cast<Wide>(value);
      if (rank == 0) {
        sum = term;
      } else {
        sum = is_max ? std::max(sum, term) : static_cast<Wide>(sum + term);
      }
    }
    const T value = static_cast<T>(sum);
    std::memcpy(static_cast<char*>(out) + i * sizeof(T), &value, sizeof(T));
  }
}

}  // namespace

bool Reduce(ncclDataType_t dtype, bool is_max, const std::vector<std::vector<char>>& terms,
            void* out, size_t bytes) {
  switch (dtype) {
    case ncclFloat32:
      ReduceAs<float, float>(terms, out, bytes, is_max);
      return true;
    case ncclBfloat16:
      ReduceAs<__nv_bfloat16, float>(terms, out, bytes, is_max);
      return true;
    case ncclInt32:
      ReduceAs<int32_t, int32_t>(terms, out, bytes, is_max);
      return true;
    case ncclInt64:
      ReduceAs<int64_t, int64_t>(terms, out, bytes, is_max);
      return true;
    default:
      return false;
  }
}

}  // namespace baton::simt
