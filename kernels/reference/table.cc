#include "kernels/host_memory.h"
#include "kernels/op_table.h"
#include "kernels/reference/reference_ops.h"

namespace baton::kernels {

const OpTable& ReferenceOps() {
#define BATON_OP_ENTRY(Name, entry) .entry = reference::Name,
  static constexpr OpTable kTable = {BATON_KERNEL_OPS(BATON_OP_ENTRY).memory = kHostMemory,
                                     .queue = kNoQueue};
#undef BATON_OP_ENTRY
  return kTable;
}

}  // namespace baton::kernels
