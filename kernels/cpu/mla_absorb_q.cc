#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/simd_base.h"

namespace baton::kernels::cpu {
namespace {

// One head of some rows.
struct AbsorbHead {
  const float* q = nullptr;  // [rows, nope], q_stride apart
  int64_t q_stride = 0, rows = 0, nope = 0;
  const Weight* w = nullptr;
  int64_t w_row = 0;     // first row of the head's W_UK
  int64_t columns = 0;   // kv_lora
  float* out = nullptr;  // [rows, columns]
};

}  // namespace
}  // namespace baton::kernels::cpu

#define BATON_ISA_FILE "kernels/cpu/mla_absorb_q_isa.h"
#include "kernels/cpu/foreach_isa.h"

namespace baton::kernels::cpu {
namespace {

constexpr int64_t kRowBlock = 32;

void Absorb(IsaLevel isa, const AbsorbHead& head) { BATON_ISA_CALL(isa, Absorb(head)); }

}  // namespace

absl::Status MlaAbsorbQ(Device& device, const MlaAbsorbQArgs& args) {
  const int64_t rows = args.q.dim(0), heads = args.q.dim(1), head = args.q.dim(2);
  const int64_t kv_lora = args.out.dim(2), per_head = args.kv_b.w.dim(0) / heads;
  device.scratch().Reset();
  const GemmRows q = PrepareRows(device, args.q.Reshape({rows, heads * head}), DType::kF32);
  float* base = device.scratch().Get<float>(kRowBlock * kv_lora * device.pool().threads());
  const int64_t row_blocks = CeilDiv(rows, kRowBlock);
  const int64_t cost = (per_head - args.v) * kv_lora * std::min(rows, kRowBlock);
  ParallelFor(device, heads * row_blocks, cost, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t i = task / row_blocks, row = task % row_blocks * kRowBlock;
      AbsorbHead call{.q = static_cast<const float*>(q.data) + row * q.stride + i * head,
                      .q_stride = q.stride};
      call.rows = std::min(kRowBlock, rows - row);
      call.nope = per_head - args.v;
      call.w = &args.kv_b;
      call.w_row = i * per_head;
      call.columns = kv_lora;
      call.out = base + kRowBlock * kv_lora * thread;
      Absorb(device.isa(), call);
      for (int64_t r = 0; r < call.rows; ++r) {
        NarrowRow(device.isa(), call.out + r * kv_lora, kv_lora, args.out, row + r, i * kv_lora);
      }
    }
  });
  return absl::OkStatus();
}

}  // namespace baton::kernels::cpu
