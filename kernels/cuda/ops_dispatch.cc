// The host's side of rows between ranks.

#include "kernels/cuda/copy_rows.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/views.h"

namespace baton::kernels::cuda {
namespace {

int64_t StrideBytes(const TensorView& rows) {
  return rows.strides[0] * static_cast<int64_t>(DTypeBytes(rows.dtype));
}

int32_t* OrNull(const TensorView& view) { return view.absent() ? nullptr : view.as<int32_t>(); }

DispatchPlanLaunch PlanOf(const DispatchPlanArgs& args) {
  return {.physical = args.physical.as<const int32_t>(),
          .counts = args.counts.as<int32_t>(),
          .records = args.records.as<int32_t>(),
          .home_rows = args.home_rows.as<int32_t>(),
          .rows = static_cast<int>(args.physical.dim(0)),
          .choices = static_cast<int>(args.physical.dim(1)),
          .ranks = static_cast<int>(args.counts.dim(0)),
          .slots_per_rank = args.slots_per_rank,
          .row_capacity = args.row_capacity,
          .pair_capacity = args.pair_capacity,
          .blocks = OrNull(args.blocks),
          .most_pairs = OrNull(args.most_pairs)};
}

}  // namespace

absl::Status MoeCount(Device& device, const MoeCountArgs& args) {
  CudaState& state = CudaState::Begin(device);
  return state.Finish(
      LaunchMoeCount({.experts = args.experts.as<const int32_t>(),
                      .slots = args.slots.absent() ? nullptr : args.slots.as<const int64_t>(),
                      .choices = args.choices.as<int32_t>(),
                      .pairs = static_cast<int>(args.experts.elements()),
                      .row_pairs = static_cast<int>(args.experts.dim(1))},
                     state.stream()),
      "moe_count");
}

absl::Status CopyRows(Device& device, const CopyRowsArgs& args) {
  CudaState& state = CudaState::Begin(device);
  return state.Finish(
      LaunchCopyRows({.from = args.x.as<const uint8_t>(),
                      .from_stride = StrideBytes(args.x),
                      .index = OrNull(args.index),
                      .to = args.out.as<uint8_t>(),
                      .to_stride = StrideBytes(args.out),
                      .rows = static_cast<int>(args.out.dim(0)),
                      .row_bytes = static_cast<int64_t>(args.out.Slice(0, 0, 1).bytes())},
                     state.stream()),
      "copy_rows");
}

absl::Status DispatchPlan(Device& device, const DispatchPlanArgs& args) {
  CudaState& state = CudaState::Begin(device);
  return state.Finish(LaunchDispatchPlan(PlanOf(args), state.stream()), "dispatch_plan");
}

absl::Status DispatchPack(Device& device, const DispatchPackArgs& args) {
  CudaState& state = CudaState::Begin(device);
  DispatchPackLaunch launch{.plan = PlanOf(args.plan),
                            .x = args.x.as<const uint8_t>(),
                            .x_stride = StrideBytes(args.x),
                            .out = args.out.as<uint8_t>(),
                            .row_bytes = args.layout.row_bytes(),
                            .scales_at = args.layout.scales_at(),
                            .slots_at = args.layout.slots_at(),
                            .record_bytes = args.layout.bytes()};
  if (!args.scales.absent()) {
    launch.scales = args.scales.as<const uint8_t>();
    launch.scales_stride = StrideBytes(args.scales);
  }
  return state.Finish(LaunchDispatchPack(launch, state.stream()), "dispatch_pack");
}

absl::Status DispatchUnpack(Device& device, const DispatchUnpackArgs& args) {
  CudaState& state = CudaState::Begin(device);
  return state.Finish(LaunchDispatchUnpack({.records = args.records.as<const uint8_t>(),
                                            .record_bytes = args.layout.bytes(),
                                            .scales_at = args.layout.scales_at(),
                                            .slots_at = args.layout.slots_at(),
                                            .rows = static_cast<int>(args.slots.dim(0)),
                                            .choices = args.layout.choices,
                                            .slots_per_rank = args.slots_per_rank,
                                            .slots = args.slots.as<int32_t>(),
                                            .x = RowsOf(args.x),
                                            .hidden = static_cast<int>(args.layout.hidden)},
                                           state.stream()),
                      "dispatch_unpack");
}

absl::Status ReturnPlan(Device& device, const ReturnPlanArgs& args) {
  CudaState& state = CudaState::Begin(device);
  const int64_t rows = args.pair_rows.dim(0);
  const int64_t blocks = args.row_capacity > 0 ? rows / args.row_capacity : 1;
  return state.Finish(LaunchReturnPlan({.pair_rows = args.pair_rows.as<const int32_t>(),
                                        .index = args.index.as<int32_t>(),
                                        .blocks = static_cast<int>(blocks),
                                        .block_entries = args.pair_rows.elements() / blocks,
                                        .block_places = args.index.elements() / blocks},
                                       state.stream()),
                      "return_plan");
}

}  // namespace baton::kernels::cuda
