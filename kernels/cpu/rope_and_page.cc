#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rows.h"
#include "kernels/page_entry.h"

namespace baton::kernels::cpu {
namespace {

// In place: (a, b) -> (a cos - b sin, a sin + b cos) on interleaved pairs.
void Rotate(float* x, const float* cos, const float* sin, int64_t pairs) {
  for (int64_t i = 0; i < pairs; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1];
    x[2 * i] = a * cos[i] - b * sin[i];
    x[2 * i + 1] = a * sin[i] + b * cos[i];
  }
}

void PageRow(IsaLevel isa, const RopeAndPageArgs& args, int64_t t, const float* cos,
             const float* sin, const float* norm, float* buffer) {
  const int64_t kv_lora = args.pages.kv_lora, rope = args.pages.rope;
  WidenRow(isa, args.kv_a, t, 0, kv_lora + rope, buffer);
  NormRow(isa, buffer, kv_lora, norm, args.eps, buffer);
  Rotate(buffer + kv_lora, cos, sin, rope / 2);
  WriteEntry(args.pages, buffer, buffer + kv_lora,
             EntryAtSlot(args.pages, args.slots.as<const int64_t>()[t]));
}

}  // namespace

absl::Status RopeAndPage(Device& device, const RopeAndPageArgs& args) {
  const IsaLevel isa = device.isa();
  const int64_t kv_lora = args.pages.kv_lora, rope = args.pages.rope;
  const int64_t heads = args.q.dim(1), head = args.q.dim(2);
  Scratch& scratch = device.scratch();
  scratch.Reset();
  float* norm = scratch.Get<float>(kv_lora);
  WidenRow(isa, args.kv_norm.Reshape({1, kv_lora}), 0, 0, kv_lora, norm);
  const int64_t per_thread = RoundUp(kv_lora + rope, 16);
  float* buffers = scratch.Get<float>(per_thread * device.pool().threads());
  const int64_t cost = 4 * (heads * rope + kv_lora);
  ParallelFor(device, args.q.dim(0), cost, [&](int64_t begin, int64_t end, int thread) {
    float* buffer = buffers + per_thread * thread;
    for (int64_t t = begin; t < end; ++t) {
      const int32_t position = args.positions.as<const int32_t>()[t];
      const float* cos = args.cos.row<const float>(position);
      const float* sin = args.sin.row<const float>(position);
      for (int64_t i = 0; i < heads; ++i) {
        WidenRow(isa, args.q, t, (i + 1) * head - rope, rope, buffer);
        Rotate(buffer, cos, sin, rope / 2);
        NarrowRow(isa, buffer, rope, args.q, t, (i + 1) * head - rope);
      }
      if (args.slots.as<const int64_t>()[t] < 0) continue;
      PageRow(isa, args, t, cos, sin, norm, buffer);
    }
  });
  return absl::OkStatus();
}

}  // namespace baton::kernels::cpu
