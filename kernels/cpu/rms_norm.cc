#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rows.h"

namespace baton::kernels::cpu {

absl::Status RmsNorm(Device& device, const RmsNormArgs& args) {
  const IsaLevel isa = device.isa();
  const int64_t hidden = args.x.dim(1);
  Scratch& scratch = device.scratch();
  scratch.Reset();
  float* weight = scratch.Get<float>(hidden);
  WidenRow(isa, args.weight.Reshape({1, hidden}), 0, 0, hidden, weight);
  float* buffers = scratch.Get<float>(2 * hidden * device.pool().threads());
  ParallelFor(device, args.x.dim(0), 4 * hidden, [&](int64_t begin, int64_t end, int thread) {
    float* x = buffers + 2 * hidden * thread;
    float* add = x + hidden;
    for (int64_t t = begin; t < end; ++t) {
      WidenRow(isa, args.x, t, 0, hidden, x);
      if (!args.add.absent()) {
        WidenRow(isa, args.add, t, 0, hidden, add);
        AddRow(isa, add, hidden, x);
        NarrowRow(isa, x, hidden, args.x, t, 0);
        WidenRow(isa, args.x, t, 0, hidden, x);  // the norm sees the sum as stored
      }
      NormRow(isa, x, hidden, weight, args.eps, x);
      NarrowRow(isa, x, hidden, args.out, t, 0);
    }
  });
  return absl::OkStatus();
}

}  // namespace baton::kernels::cpu
