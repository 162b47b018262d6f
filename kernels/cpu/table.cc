#include "kernels/cpu/cpu_ops.h"
#include "kernels/host_memory.h"
#include "kernels/op_table.h"

namespace baton::kernels {

const OpTable& CpuOps() {
#define BATON_OP_ENTRY(Name, entry) .entry = cpu::Name,
  static constexpr OpTable kTable = {BATON_KERNEL_OPS(BATON_OP_ENTRY).memory = kHostMemory,
                                     .queue = kNoQueue};
#undef BATON_OP_ENTRY
  return kTable;
}

}  // namespace baton::kernels
