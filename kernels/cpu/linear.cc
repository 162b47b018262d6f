#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gemm.h"

namespace baton::kernels::cpu {

absl::Status Linear(Device& device, const LinearArgs& args) {
  device.scratch().Reset();
  const GemmJob job{.x = PrepareRows(device, args.x, args.w.w.dtype, args.x_scales),
                    .row_begin = 0,
                    .row_end = args.x.dim(0),
                    .w = &args.w,
                    .w2 = &args.w2,
                    .n_begin = 0,
                    .n_end = args.w.w.dim(0),
                    .out = args.out};
  RunGemm(device, absl::MakeConstSpan(&job, 1), args.epilogue);
  return absl::OkStatus();
}

}  // namespace baton::kernels::cpu
