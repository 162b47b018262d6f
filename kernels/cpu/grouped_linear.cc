#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gemm.h"

namespace baton::kernels::cpu {

absl::Status GroupedLinear(Device& device, const GroupedLinearArgs& args) {
  device.scratch().Reset();
  const int32_t* offsets = args.offsets.as<const int32_t>();
  if (offsets[args.w.size()] == 0) return absl::OkStatus();
  GemmRows x = PrepareRows(device, args.x, args.w[0].w.dtype, args.x_scales);
  if (!args.row_index.absent()) x.index = args.row_index.as<const int32_t>();
  std::vector<GemmJob> jobs;
  for (size_t e = 0; e < args.w.size(); ++e) {
    if (offsets[e] == offsets[e + 1]) continue;
    GemmJob job{.x = x, .row_begin = offsets[e], .row_end = offsets[e + 1]};
    job.w = &args.w[e];
    job.w2 = args.epilogue == Epilogue::kSiluMul ? &args.w2[e] : nullptr;
    job.n_end = args.out.dim(1);
    job.out = args.out;
    jobs.push_back(job);
  }
  RunGemm(device, jobs, args.epilogue);
  return absl::OkStatus();
}

}  // namespace baton::kernels::cpu
