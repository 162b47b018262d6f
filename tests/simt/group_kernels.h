#ifndef BATON_TESTS_SIMT_GROUP_KERNELS_H_
#define BATON_TESTS_SIMT_GROUP_KERNELS_H_

// Kernels with matrix instructions of warpgroups and boxes of tensors: right ones, and one with
// each fault that the emulation must find in their use.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/tensor_map.h"

namespace baton::simt {

struct GroupArgs {
  const uint16_t* a = nullptr;     // BF16 [64, 64]
  const uint8_t* a8 = nullptr;     // E4M3 [64, 128]
  const uint8_t* b8 = nullptr;     // E4M3 [16, 128]
  float* out = nullptr;            // [64, columns]
  kernels::cuda::TensorMap b;      // of BF16, boxes of 64 rows
  kernels::cuda::TensorMap codes;  // of bytes, boxes of 64 rows: what becomes a8 in mode 1
  int mode = 0;
};

// out = a b^T: b's rows 10 .. 73 and columns 64 .. 127 of layer 1; [64, 64].
cudaError_t LaunchRowsTimesRows(const GroupArgs& args, cudaStream_t stream);
// out = a b: b's rows 10 .. 73 and columns 0 .. 127 of layer 1; [64, 128]. a is in registers.
cudaError_t LaunchRegistersTimesColumns(const GroupArgs& args, cudaStream_t stream);
// out = a8 b8^T; [64, 16]. In mode 1 a8 is the box at row 20 and column 16 of layer 2 of `codes`.
cudaError_t LaunchCodes(const GroupArgs& args, cudaStream_t stream);

enum class GroupFault : uint8_t {
  kReadBeforeWait,
  kNotNamedByWait,
  kNeverWaited,
  kNotFenced,
  kNotNamedByFence,
  kOperandOverwritten,
  kOverwrittenBehindOwnWait,  // other warps may still read
  kNoProxyFence,
  kNoProxyFenceBeforeCopy,
  kMisalignedOperand,
  kNotSwizzled,
  kUninitializedRow,
  kThreeWarps,
  kDifferentOperands,
  kBoxNotAwaited,
  kRegistersOfSomeWarps,
  // Of a box itself:
  kBoxMisaligned,
  kBoxBehindShared,
  kBoxOfOtherMemory,  // a map over more than was allocated
  kBoxOfNoMap,
  kPrefetchOfNoMap,
  kBoxBytesMissing,  // more are expected than come
  kBoxBytesUnexpected,
};
// Mode 1: the same without the fault.
cudaError_t LaunchGroupFault(GroupFault fault, const GroupArgs& args, cudaStream_t stream);

}  // namespace baton::simt

#endif  // BATON_TESTS_SIMT_GROUP_KERNELS_H_
