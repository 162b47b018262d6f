#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rows.h"

namespace baton::kernels::cpu {

absl::Status Embed(Device& device, const EmbedArgs& args) {
  const int64_t hidden = args.table.dim(1);
  ParallelFor(device, args.ids.dim(0), hidden, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      WidenRow(device.isa(), args.table, args.ids.as<const int32_t>()[t], 0, hidden,
               args.out.row<float>(t));
    }
  });
  return absl::OkStatus();
}

}  // namespace baton::kernels::cpu
