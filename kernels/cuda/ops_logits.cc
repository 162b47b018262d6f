// The host's side of ops on logits.

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/logits_mask.h"

namespace baton::kernels::cuda {

absl::Status LogitsMask(Device& device, const LogitsMaskArgs& args) {
  CudaState& state = CudaState::Begin(device);
  if (args.logits.dim(1) == 0) return absl::OkStatus();
  return state.Finish(LaunchLogitsMask({.logits = args.logits.as<float>(),
                                        .logits_stride = args.logits.strides[0],
                                        .mask = args.mask.as<const uint32_t>(),
                                        .mask_stride = args.mask.strides[0],
                                        .rows = static_cast<int>(args.logits.dim(0)),
                                        .vocabulary = static_cast<int>(args.logits.dim(1))},
                                       state.stream()),
                      "logits_mask");
}

}  // namespace baton::kernels::cuda
