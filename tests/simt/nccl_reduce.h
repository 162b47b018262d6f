#ifndef BATON_TESTS_SIMT_NCCL_REDUCE_H_
#define BATON_TESTS_SIMT_NCCL_REDUCE_H_

// NCCL's data types.

#include <nccl.h>

#include <cstddef>
#include <vector>

namespace baton::simt {

// 0 for one that the emulation does not have.
size_t DTypeBytes(ncclDataType_t dtype);
// The sum of the terms, each of `bytes`, in their order, or their maximum; false for a type that
// the emulation does not add up.
bool Reduce(ncclDataType_t dtype, bool is_max, const std::vector<std::vector<char>>& terms,
            void* out, size_t bytes);

}  // namespace baton::simt

#endif  // BATON_TESTS_SIMT_NCCL_REDUCE_H_
