// The host's side of ops on rows: arguments, a launch, the status.

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/embed.h"
#include "kernels/cuda/quantize_fp8.h"
#include "kernels/cuda/rms_norm.h"
#include "kernels/cuda/views.h"

namespace baton::kernels::cuda {

absl::Status Embed(Device& device, const EmbedArgs& args) {
  CudaState& state = CudaState::Begin(device);
  return state.Finish(LaunchEmbed({.ids = args.ids.as<const int32_t>(),
                                   .table = RowsOf(args.table),
                                   .out = args.out.as<float>(),
                                   .out_stride = args.out.strides[0],
                                   .rows = static_cast<int>(args.out.dim(0)),
                                   .hidden = static_cast<int>(args.out.dim(1))},
                                  state.stream()),
                      "embed");
}

absl::Status RmsNorm(Device& device, const RmsNormArgs& args) {
  CudaState& state = CudaState::Begin(device);
  return state.Finish(LaunchRmsNorm({.x = RowsOf(args.x),
                                     .add = RowsOf(args.add),
                                     .weight = RowsOf(args.weight),
                                     .out = RowsOf(args.out),
                                     .rows = static_cast<int>(args.x.dim(0)),
                                     .hidden = static_cast<int>(args.x.dim(1)),
                                     .epsilon = args.eps},
                                    state.stream()),
                      "rms_norm");
}

absl::Status QuantizeFp8(Device& device, const QuantizeFp8Args& args) {
  CudaState& state = CudaState::Begin(device);
  return state.Finish(
      LaunchQuantizeFp8(
          {.x = RowsOf(args.x),
           .out = args.out.as<uint8_t>(),
           .out_stride = args.out.strides[0],
           .scales = args.scales.as<float>(),
           .scales_stride = args.scales.strides[0],
           .row_count = args.row_count.absent() ? nullptr : args.row_count.as<const int32_t>(),
           .rows = static_cast<int>(args.x.dim(0)),
           .columns = static_cast<int>(args.x.dim(1))},
          state.stream()),
      "quantize_fp8");
}

}  // namespace baton::kernels::cuda
