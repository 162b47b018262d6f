// The host's side of ops on latent pages: arguments, launches, the status.

#include <algorithm>
#include <numbers>

#include "base/status_macros.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_views.h"
#include "kernels/cuda/mla_decode.h"
#include "kernels/cuda/mla_heads.h"
#include "kernels/cuda/mla_prefill.h"
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
                                                  : PageFormat::kFp8,
      .count = static_cast<int32_t>(pages.data.dim(0))};
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

// The same from row `item` on.
Rows From(Rows rows, int64_t item) {
  rows.data = static_cast<uint8_t*>(rows.data) + item * rows.stride * (rows.bf16 ? 2 : 4);
  return rows;
}

// Working memory for the splits' states of as many rows at a time as fit; returns their number.
// More rows are more launches.
absl::StatusOr<int64_t> PrepareDecode(CudaState& state, int64_t rows, int64_t max_pages,
                                      MlaDecodeLaunch& launch) {
  const int64_t keys = max_pages * launch.pages.page_tokens;
  launch.splits = MostSplits(launch.long_split, static_cast<int>(keys));
  const int64_t row_states = int64_t{launch.heads} * launch.splits;
  const int64_t row_floats = row_states * launch.pages.kv_lora;
  const int64_t piece = std::clamp<int64_t>(state.working_bytes() / (4 * row_floats), 1, rows);
  BATON_ASSIGN_OR_RETURN(launch.part_acc, state.Scratch<float>(piece * row_floats));
  BATON_ASSIGN_OR_RETURN(launch.part_best, state.Scratch<float>(piece * row_states));
  BATON_ASSIGN_OR_RETURN(launch.part_sum, state.Scratch<float>(piece * row_states));
  return piece;
}

absl::Status RunDecode(CudaState& state, const MlaDecodeLaunch& launch) {
  cudaError_t launched;
  if (launch.long_split == kLongSplit) {
    launched = LaunchMlaDecodeHopper(launch, state.stream());
  } else if (CanMlaDecodeTensor(launch, state.architecture())) {
    launched = LaunchMlaDecodeTensor(launch, state.architecture(), state.stream());
  } else {
    launched = LaunchMlaDecodePlain(launch, state.stream());
  }
  BATON_RETURN_IF_ERROR(CudaStatus(launched, "mla_decode"));
  return CudaStatus(LaunchMlaDecodeMerge(launch, state.stream()), "mla_decode's merge");
}

// Key blocks of all sequences' contexts, at most.
int64_t MostKeyBlocks(const PagedBatch& batch, int page_tokens) {
  const int64_t sequences = batch.context_len.dim(0);
  const int64_t longest = batch.page_table.dim(1) * page_tokens;
  const int64_t each = (longest + kPanelKeys - 1) / kPanelKeys;
  if (batch.context_tokens == 0) return sequences * each;
  return std::min(sequences * each,
                  (batch.context_tokens + sequences * (kPanelKeys - 1)) / kPanelKeys);
}

MlaPrefillLaunch PrefillOf(const MlaPrefillArgs& args) {
  const int nope = static_cast<int>(args.q.dim(2)) - args.pages.rope;
  return {.q = HeadRows(args.q),
          .out = HeadRows(args.out),
          .kv_b = GemmWeightOf(args.kv_b),
          .type = GemmTypeOf(args.kv_b.w.dtype),
          .block_n = args.kv_b.block_n,
          .block_k = args.kv_b.block_k,
          .pages = PagesOf(args.pages),
          .batch = BatchOf(args.batch),
          .rows = static_cast<int>(args.q.dim(0)),
          .heads = static_cast<int>(args.q.dim(1)),
          .nope = nope,
          .v = static_cast<int>(args.out.dim(2)),
          .key_blocks = static_cast<int>(MostKeyBlocks(args.batch, args.pages.page_tokens)),
          .scale_log2 = args.softmax_scale * std::numbers::log2e_v<float>};
}

// Heads in groups whose expanded keys and values fit the working memory.
absl::Status RunPrefill(CudaState& state, MlaPrefillLaunch launch) {
  const int64_t head_elements =
      int64_t{launch.key_blocks} * ExpandedPanels(launch.nope, launch.v) * kPanelElements;
  const int64_t most = state.working_bytes() / (2 * head_elements);
  const int group = static_cast<int>(std::clamp<int64_t>(most, 1, launch.heads));
  BATON_ASSIGN_OR_RETURN(launch.expanded, state.Scratch<uint16_t>(group * head_elements));
  BATON_ASSIGN_OR_RETURN(launch.rotary,
                         state.Scratch<uint16_t>(int64_t{launch.key_blocks} * kPanelElements));
  for (int head = 0; head < launch.heads; head += group) {
    launch.first_head = head;
    launch.group = std::min(group, launch.heads - head);
    BATON_RETURN_IF_ERROR(
        CudaStatus(LaunchMlaExpand(launch, state.stream()), "mla_prefill's expansion"));
    BATON_RETURN_IF_ERROR(CudaStatus(LaunchMlaPrefill(launch, state.stream()), "mla_prefill"));
  }
  return state.Finish(cudaSuccess, "mla_prefill");
}

// What a piece of prefill in absorbed form works on.
struct AbsorbedPrefill {
  MlaHeadsLaunch absorb;
  MlaDecodeLaunch attend;
  GemmLaunch expand;
};

// `q` [T, heads, head], outputs elsewhere.
MlaHeadsLaunch AbsorbOf(const TensorView& q, const Weight& kv_b, int v, int kv_lora) {
  const int heads = static_cast<int>(q.dim(1));
  const int per_head = static_cast<int>(kv_b.w.dim(0)) / heads;
  return {.q = HeadRows(q),
          .kv_b = GemmWeightOf(kv_b),
          .type = GemmTypeOf(kv_b.w.dtype),
          .block_n = kv_b.block_n,
          .block_k = kv_b.block_k,
          .rows = static_cast<int>(q.dim(0)),
          .heads = heads,
          .nope = per_head - v,
          .per_head = per_head,
          .kv_lora = kv_lora};
}

// `out` [T, heads, v], inputs elsewhere: [T, heads * kv_lora].
GemmLaunch ExpandOf(const Weight& kv_b, int kv_lora, const TensorView& out) {
  const int64_t heads = out.dim(1), v = out.dim(2), per_head = kv_b.w.dim(0) / heads;
  return {.w = GemmWeightOf(kv_b),
          .out = {.data = out.data, .stride = heads * v, .bf16 = out.dtype == DType::kBF16},
          .rows = static_cast<int>(out.dim(0)),
          .n = static_cast<int>(v),
          .k = kv_lora,
          .block_n = kv_b.block_n,
          .block_k = kv_b.block_k,
          .type = GemmTypeOf(kv_b.w.dtype),
          .batch = static_cast<int>(heads),
          .x_step = kv_lora,
          .w_step = per_head,
          .out_step = v,
          .w_begin = per_head - v};
}

AbsorbedPrefill AbsorbedPrefillOf(const MlaPrefillArgs& args) {
  const int v = static_cast<int>(args.out.dim(2)), kv_lora = args.pages.kv_lora;
  return {.absorb = AbsorbOf(args.q, args.kv_b, v, kv_lora),
          .attend = {.q = HeadRows(args.q),
                     .pages = PagesOf(args.pages),
                     .batch = BatchOf(args.batch),
                     .heads = static_cast<int>(args.q.dim(1)),
                     .head = static_cast<int>(args.q.dim(2)),
                     .scale_log2 = args.softmax_scale * std::numbers::log2e_v<float>},
          .expand = ExpandOf(args.kv_b, kv_lora, args.out)};
}

// In F32, for all types and shapes: the absorbed form, some rows at a time.
absl::Status RunAbsorbedPrefill(CudaState& state, const MlaPrefillArgs& args) {
  const int64_t rows = args.q.dim(0), heads = args.q.dim(1), kv_lora = args.pages.kv_lora;
  AbsorbedPrefill work = AbsorbedPrefillOf(args);
  BATON_ASSIGN_OR_RETURN(const int64_t piece,
                         PrepareDecode(state, rows, args.batch.page_table.dim(1), work.attend));
  BATON_ASSIGN_OR_RETURN(float* const q_lat, state.Scratch<float>(piece * heads * kv_lora));
  BATON_ASSIGN_OR_RETURN(float* const o_lat, state.Scratch<float>(piece * heads * kv_lora));
  work.absorb.out = work.attend.q_lat = {.data = q_lat, .stride = kv_lora};
  work.attend.out = {.data = o_lat, .stride = kv_lora};
  work.expand.x = {.data = o_lat, .stride = heads * kv_lora};
  const Rows out = work.expand.out;
  for (int64_t row = 0; row < rows; row += piece) {
    const int count = static_cast<int>(std::min(piece, rows - row));
    work.absorb.rows = work.attend.rows = work.expand.rows = count;
    work.absorb.q = work.attend.q = From(HeadRows(args.q), row * heads);
    work.attend.first_row = static_cast<int>(row);
    work.expand.out = From(out, row);
    BATON_RETURN_IF_ERROR(
        CudaStatus(LaunchMlaHeadsPlain(work.absorb, state.stream()), "mla_prefill"));
    BATON_RETURN_IF_ERROR(RunDecode(state, work.attend));
    BATON_RETURN_IF_ERROR(CudaStatus(LaunchGemmF32(work.expand, state.stream()), "mla_prefill"));
  }
  return state.Finish(cudaSuccess, "mla_prefill");
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
  const int64_t rows = args.q.dim(0), heads = args.q.dim(1);
  MlaDecodeLaunch launch{.pages = PagesOf(args.pages),
                         .batch = BatchOf(args.batch),
                         .heads = static_cast<int>(heads),
                         .head = static_cast<int>(args.q.dim(2)),
                         .scale_log2 = args.softmax_scale * std::numbers::log2e_v<float>};
  launch.q_lat = HeadRows(args.q_lat);
  launch.q = HeadRows(args.q);
  if (state.warpgroups() && CanMlaDecodeHopper(launch)) launch.long_split = kLongSplit;
  BATON_ASSIGN_OR_RETURN(const int64_t piece,
                         PrepareDecode(state, rows, args.batch.page_table.dim(1), launch));
  for (int64_t row = 0; row < rows; row += piece) {
    launch.first_row = static_cast<int>(row);
    launch.rows = static_cast<int>(std::min(piece, rows - row));
    launch.q_lat = From(HeadRows(args.q_lat), row * heads);
    launch.q = From(HeadRows(args.q), row * heads);
    launch.out = From(HeadRows(args.out), row * heads);
    BATON_RETURN_IF_ERROR(RunDecode(state, launch));
  }
  return state.Finish(cudaSuccess, "mla_decode");
}

absl::Status MlaAbsorbQ(Device& device, const MlaAbsorbQArgs& args) {
  CudaState& state = CudaState::Begin(device);
  MlaHeadsLaunch launch = AbsorbOf(args.q, args.kv_b, args.v, static_cast<int>(args.out.dim(2)));
  launch.out = HeadRows(args.out);
  return state.Finish(CanMlaHeadsTensor(launch) ? LaunchMlaHeadsTensor(launch, state.stream())
                                                : LaunchMlaHeadsPlain(launch, state.stream()),
                      "mla_absorb_q");
}

absl::Status MlaExpandV(Device& device, const MlaExpandVArgs& args) {
  CudaState& state = CudaState::Begin(device);
  GemmLaunch launch = ExpandOf(args.kv_b, static_cast<int>(args.o_lat.dim(2)), args.out);
  launch.x = HeadRows(args.o_lat);
  launch.x.stride *= args.o_lat.dim(1);
  launch.hopper = state.warpgroups() && HasAlignedRows(args.kv_b);
  return state.Finish(LaunchGemm(launch, state.stream()), "mla_expand_v");
}

absl::Status MlaPrefill(Device& device, const MlaPrefillArgs& args) {
  CudaState& state = CudaState::Begin(device);
  const MlaPrefillLaunch launch = PrefillOf(args);
  return CanMlaPrefillTensor(launch) ? RunPrefill(state, launch) : RunAbsorbedPrefill(state, args);
}

}  // namespace baton::kernels::cuda
