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

// What all rows of a call share.
struct Rows {
  const RopeAndPageArgs& args;
  IsaLevel isa;
  const float* norm = nullptr;  // widened kv_norm
};

void RotateQueries(const Rows& rows, int64_t t, const float* cos, const float* sin, float* buffer) {
  const TensorView& q = rows.args.q;
  const int64_t heads = q.dim(1), head = q.dim(2), rope = rows.args.pages.rope;
  for (int64_t i = 0; i < heads; ++i) {
    WidenRow(rows.isa, q, t, (i + 1) * head - rope, rope, buffer);
    Rotate(buffer, cos, sin, rope / 2);
    NarrowRow(rows.isa, buffer, rope, q, t, (i + 1) * head - rope);
  }
}

void PageRow(const Rows& rows, int64_t t, const float* cos, const float* sin, float* buffer) {
  const KvPages& pages = rows.args.pages;
  const int64_t kv_lora = pages.kv_lora, rope = pages.rope;
  const int64_t slot = rows.args.slots.as<const int64_t>()[t];
  if (slot < 0) return;
  WidenRow(rows.isa, rows.args.kv_a, t, 0, kv_lora + rope, buffer);
  NormRow(rows.isa, buffer, kv_lora, rows.norm, rows.args.eps, buffer);
  Rotate(buffer + kv_lora, cos, sin, rope / 2);
  WriteEntry(pages, buffer, buffer + kv_lora, EntryAtSlot(pages, slot));
}

}  // namespace

absl::Status RopeAndPage(Device& device, const RopeAndPageArgs& args) {
  const int64_t kv_lora = args.pages.kv_lora, rope = args.pages.rope;
  const bool queries = !args.q.absent(), latents = !args.kv_a.absent();
  Scratch& scratch = device.scratch();
  scratch.Reset();
  float* norm = scratch.Get<float>(kv_lora);
  const Rows rows{.args = args, .isa = device.isa(), .norm = norm};
  if (latents) WidenRow(rows.isa, args.kv_norm.Reshape({1, kv_lora}), 0, 0, kv_lora, norm);
  const int64_t per_thread = RoundUp(kv_lora + rope, 16);
  float* buffers = scratch.Get<float>(per_thread * device.pool().threads());
  const int64_t cost = 4 * ((queries ? args.q.dim(1) * rope : 0) + (latents ? kv_lora : 0));
  ParallelFor(device, args.positions.dim(0), cost, [&](int64_t begin, int64_t end, int thread) {
    float* buffer = buffers + per_thread * thread;
    for (int64_t t = begin; t < end; ++t) {
      const int32_t position = args.positions.as<const int32_t>()[t];
      const float* cos = args.cos.row<const float>(position);
      const float* sin = args.sin.row<const float>(position);
      if (queries) RotateQueries(rows, t, cos, sin, buffer);
      if (latents) PageRow(rows, t, cos, sin, buffer);
    }
  });
  return absl::OkStatus();
}

}  // namespace baton::kernels::cpu
