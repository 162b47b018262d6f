#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gemm.h"

namespace baton::kernels::cpu {

absl::Status MlaExpandV(Device& device, const MlaExpandVArgs& args) {
  const int64_t rows = args.o_lat.dim(0), heads = args.o_lat.dim(1), kv_lora = args.o_lat.dim(2);
  const int64_t v = args.out.dim(2), per_head = args.kv_b.w.dim(0) / heads;
  device.scratch().Reset();
  // Rows of all heads in one list; head i of row t is entry t * heads + i.
  const GemmRows all =
      PrepareRows(device, args.o_lat.Reshape({rows * heads, kv_lora}), args.kv_b.w.dtype);
  const TensorView out = args.out.Reshape({rows, heads * v});
  std::vector<GemmJob> jobs;
  for (int64_t i = 0; i < heads; ++i) {
    GemmJob job{.x = all, .row_begin = 0, .row_end = rows};
    job.x.data = static_cast<const uint8_t*>(all.data) + i * all.stride * (all.bf16 ? 2 : 4);
    job.x.stride = all.stride * heads;
    job.w = &args.kv_b;
    job.n_begin = (i + 1) * per_head - v;
    job.n_end = (i + 1) * per_head;
    job.out = out.Slice(1, i * v, (i + 1) * v);
    jobs.push_back(job);
  }
  RunGemm(device, jobs, Epilogue::kNone);
  return absl::OkStatus();
}

}  // namespace baton::kernels::cpu
