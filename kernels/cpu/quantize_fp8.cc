#include <algorithm>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rows.h"
#include "kernels/page_entry.h"

namespace baton::kernels::cpu {

absl::Status QuantizeFp8(Device& device, const QuantizeFp8Args& args) {
  const int64_t depth = args.x.dim(1);
  const int64_t rows =
      args.row_count.absent() ? args.x.dim(0) : args.row_count.as<const int32_t>()[0];
  ParallelFor(device, rows, 8 * depth, [&](int64_t begin, int64_t end, int) {
    float group[kQuantGroup];
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t k = 0; k < depth; k += kQuantGroup) {
        const int64_t count = std::min<int64_t>(kQuantGroup, depth - k);
        WidenRow(device.isa(), args.x, t, k, count, group);
        args.scales.row<float>(t)[k / kQuantGroup] =
            QuantizeGroup(group, count, args.out.row<uint8_t>(t) + k);
      }
    }
  });
  return absl::OkStatus();
}

}  // namespace baton::kernels::cpu
