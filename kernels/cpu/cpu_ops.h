#ifndef BATON_KERNELS_CPU_CPU_OPS_H_
#define BATON_KERNELS_CPU_CPU_OPS_H_

// The cpu backend's ops: SIMD at the device's ISA level, on the device's threads. Row-invariant
// (ops.h); how each one gets there stands in its file.

#include "kernels/op_list.h"
#include "kernels/ops.h"

namespace baton::kernels::cpu {

BATON_KERNEL_OPS(BATON_DECLARE_OP)

}  // namespace baton::kernels::cpu

#endif  // BATON_KERNELS_CPU_CPU_OPS_H_
