// The host's side of ops on latent pages: arguments, launches, the status.

#include <algorithm>
#include <numbers>

#include "base/status_macros.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/mla_decode.h"
#include "kernels/cuda/rope_and_page.h"
#include "kernels/cuda/views.h"
#include "kernels/page_entry.h"

namespace baton::kernels::cuda {
namespace {

Pages PagesOf(const KvPages& pages) {
  return {
      .data = pages.data.as<uint8_t>(),
      .page_bytes = pages.data.strides[0],
      .entry_bytes = static_cast<int32_t>(KvEntryBytes(pages.format, pages.kv_lora, pages.rope)),
      .rope_offset = static_cast<int32_t>(RopeOffset(pages)),
      .page_tokens = pages.page_tokens,
      .kv_lora = pages.kv_lora,
      .rope = pages.rope,
      .format = pages.format == KvFormat::kF32    ? PageFormat::kF32
                : pages.format == KvFormat::kBF16 ? PageFormat::kBf16
                                                  : PageFormat::kFp8};
}

Batch BatchOf(const PagedBatch& batch) {
  return {.query_start = batch.query_start.as<const int32_t>(),
          .context_len = batch.context_len.as<const int32_t>(),
          .page_table = batch.page_table.as<const int32_t>(),
          .table_stride = batch.page_table.strides[0],
          .sequences = static_cast<int32_t>(batch.context_len.dim(0))};
}

// [T, heads, n] as rows of the heads.
Rows HeadRows(const TensorView& view) {
  return {.data = view.data, .stride = view.dim(2), .bf16 = view.dtype == DType::kBF16};
}

// Splits' states are this many floats at most, so long as one row's fit; more rows are more
// launches.
constexpr int64_t kMaxStateFloats = int64_t{1} << 26;

// Rows [launch.first_row, + launch.rows), both launches.
absl::Status RunDecode(CudaState& state, MlaDecodeLaunch launch, int64_t max_pages) {
  const int64_t keys = max_pages * launch.pages.page_tokens;
  launch.splits = static_cast<int>((keys + kDecodeSplit - 1) / kDecodeSplit);
  const int64_t row_states = int64_t{launch.heads} * launch.splits;
  const int64_t row_floats = row_states * launch.pages.kv_lora;
  const int64_t end = int64_t{launch.first_row} + launch.rows;
  const int64_t piece = std::clamp<int64_t>(kMaxStateFloats / row_floats, 1, launch.rows);
  BATON_ASSIGN_OR_RETURN(launch.part_acc, state.Scratch<float>(piece * row_floats));
  BATON_ASSIGN_OR_RETURN(launch.part_best, state.Scratch<float>(piece * row_states));
  BATON_ASSIGN_OR_RETURN(launch.part_sum, state.Scratch<float>(piece * row_states));
  for (int64_t row = launch.first_row; row < end; row += piece) {
    launch.first_row = static_cast<int>(row);
    launch.rows = static_cast<int>(std::min(piece, end - row));
    BATON_RETURN_IF_ERROR(
        CudaStatus(CanMlaDecodeTensor(launch, state.architecture())
                       ? LaunchMlaDecodeTensor(launch, state.architecture(), state.stream())
                       : LaunchMlaDecodePlain(launch, state.stream()),
                   "mla_decode"));
    BATON_RETURN_IF_ERROR(
        CudaStatus(LaunchMlaDecodeMerge(launch, state.stream()), "mla_decode's merge"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RopeAndPage(Device& device, const RopeAndPageArgs& args) {
  CudaState& state = CudaState::Begin(device);
  RopeAndPageLaunch launch{.q = RowsOf(args.q),
                           .kv_a = RowsOf(args.kv_a),
                           .norm = RowsOf(args.kv_norm),
                           .cos = args.cos.as<const float>(),
                           .sin = args.sin.as<const float>(),
                           .positions = args.positions.as<const int32_t>(),
                           .slots = args.slots.as<const int64_t>(),
                           .pages = PagesOf(args.pages),
                           .rows = static_cast<int>(args.positions.dim(0)),
                           .epsilon = args.eps};
  if (!args.q.absent()) {
    launch.heads = static_cast<int>(args.q.dim(1));
    launch.head = static_cast<int>(args.q.dim(2));
  }
  return state.Finish(LaunchRopeAndPage(launch, state.stream()), "rope_and_page");
}

absl::Status MlaDecode(Device& device, const MlaDecodeArgs& args) {
  CudaState& state = CudaState::Begin(device);
  BATON_RETURN_IF_ERROR(RunDecode(state,
                                  {.q_lat = HeadRows(args.q_lat),
                                   .q = HeadRows(args.q),
                                   .out = HeadRows(args.out),
                                   .pages = PagesOf(args.pages),
                                   .batch = BatchOf(args.batch),
                                   .rows = static_cast<int>(args.q.dim(0)),
                                   .heads = static_cast<int>(args.q.dim(1)),
                                   .head = static_cast<int>(args.q.dim(2)),
                                   .scale_log2 = args.softmax_scale * std::numbers::log2e_v<float>},
                                  args.batch.page_table.dim(1)));
  return state.Finish(cudaSuccess, "mla_decode");
}

}  // namespace baton::kernels::cuda
