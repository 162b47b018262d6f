#ifndef BATON_KERNELS_REFERENCE_REFERENCE_OPS_H_
#define BATON_KERNELS_REFERENCE_REFERENCE_OPS_H_

// The oracle: every op as its definition reads, one element at a time, in double. Single-threaded.
// With other backends it shares definitions alone, each tested against literal values: the number
// formats (numeric.h), the layout of a page entry (page_entry.h), the draw (sampling.h).

#include "kernels/op_list.h"
#include "kernels/ops.h"

namespace baton::kernels::reference {

BATON_KERNEL_OPS(BATON_DECLARE_OP)

}  // namespace baton::kernels::reference

#endif  // BATON_KERNELS_REFERENCE_REFERENCE_OPS_H_
