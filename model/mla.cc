#include "model/mla.h"

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/status_macros.h"
#include "model/linear_input.h"

namespace baton::model {
namespace {

using kernels::Epilogue;
using kernels::KvPages;
using kernels::TensorView;

// [T, heads, d] as [T, heads * d].
TensorView Flat(const TensorView& view) {
  return view.Reshape({view.dim(0), view.dim(1) * view.dim(2)});
}

// Fills `all` with the own rows of every rank. Shares are equal but for the last ones, which send
// some rows that nobody reads.
absl::Status GatherRows(const PassContext& pass, const TensorView& own, const TensorView& all) {
  if (!pass.group.tensor()) return absl::OkStatus();  // `all` is `own`
  const size_t bytes =
      static_cast<size_t>(pass.own.stride * own.dim(1)) * kernels::DTypeBytes(own.dtype);
  return pass.group.data().AllGather(
      {static_cast<const std::byte*>(own.data), bytes},
      {static_cast<std::byte*>(all.data), bytes * static_cast<size_t>(pass.group.ranks())},
      pass.group.timeout);
}

absl::Status Project(const PassContext& pass, const LinearInput& in, const kernels::Weight& w,
                     const TensorView& out) {
  return Linear(pass.device, {.x = in.x, .x_scales = in.scales, .w = w, .out = out});
}

absl::Status ProjectQ(const PassContext& pass, const AttentionWeights& w) {
  const Activations& a = pass.a;
  const bool low_rank = w.q.absent();
  if (low_rank) {
    BATON_RETURN_IF_ERROR(Project(pass, NormedFor(pass, w.q_a), w.q_a, a.own_q_a));
    BATON_RETURN_IF_ERROR(RmsNorm(
        pass.device,
        {.x = a.own_q_a, .weight = w.q_a_norm, .out = a.own_q_a, .eps = pass.config.rms_norm_eps}));
  }
  BATON_RETURN_IF_ERROR(GatherRows(pass, low_rank ? a.own_q_a : a.normed, a.q_a));
  const kernels::Weight& mine = low_rank ? w.q_b : w.q;
  BATON_ASSIGN_OR_RETURN(const LinearInput in, InputFor(pass, a.q_a, mine));
  return Project(pass, in, mine, Flat(a.q));
}

absl::Status ProjectLatents(const PassContext& pass, const AttentionWeights& w) {
  const Activations& a = pass.a;
  BATON_RETURN_IF_ERROR(Project(pass, NormedFor(pass, w.kv_a), w.kv_a, a.own_kv_a));
  return GatherRows(pass, a.own_kv_a, a.kv_a);
}

kernels::RopeAndPageArgs RopeLatents(const PassContext& pass, const AttentionWeights& w,
                                     const KvPages& pages) {
  return {.kv_a = pass.a.kv_a,
          .kv_norm = w.kv_a_norm,
          .cos = pass.cos,
          .sin = pass.sin,
          .positions = pass.a.positions,
          .slots = pass.a.slots,
          .pages = pages,
          .eps = pass.config.rms_norm_eps};
}

// From this rank's heads of all rows to all heads of this rank's rows.
absl::Status ExchangeHeads(const PassContext& pass) {
  if (!pass.group.tensor()) return absl::OkStatus();  // a.own_heads is a.heads_out
  const Activations& a = pass.a;
  const int32_t ranks = pass.group.ranks();
  const int64_t all_rows = a.heads_out.dim(0);
  const size_t head_bytes =
      static_cast<size_t>(a.heads_out.dim(2)) * kernels::DTypeBytes(a.heads_out.dtype);
  const size_t mine = static_cast<size_t>(a.heads_out.dim(1)) * head_bytes;
  std::vector<size_t> send(static_cast<size_t>(ranks)), receive(send);
  std::vector<int64_t> width(send.size());  // values of a row that come from each rank
  size_t sent = 0, received = 0;
  for (int32_t rank = 0; rank < ranks; ++rank) {
    const size_t r = static_cast<size_t>(rank);
    send[r] = static_cast<size_t>(ShareOf(all_rows, rank, ranks).size()) * mine;
    const int64_t heads = HeadsOf(pass.config.heads, rank, ranks).size();
    width[r] = heads * a.heads_out.dim(2);
    receive[r] = static_cast<size_t>(pass.own.size() * heads) * head_bytes;
    sent += send[r];
    received += receive[r];
  }
  BATON_RETURN_IF_ERROR(pass.group.data().AllToAllV(
      {static_cast<const std::byte*>(a.heads_out.data), sent}, send,
      {static_cast<std::byte*>(a.received.data), received}, receive, pass.group.timeout));
  const TensorView all = Flat(a.own_heads);
  int64_t begin = 0, column = 0;
  for (const int64_t values : width) {
    const int64_t count = pass.own.size() * values;
    BATON_RETURN_IF_ERROR(
        CopyRows(pass.device,
                 {.x = a.received.Slice(0, begin, begin + count).Reshape({pass.own.size(), values}),
                  .index = {},
                  .out = all.Slice(1, column, column + values)}));
    begin += count;
    column += values;
  }
  return absl::OkStatus();
}

// Keys and values of each head are expanded from the latents: most work per key, least per query
// row.
absl::Status AttendExpanded(const PassContext& pass, const AttentionWeights& w,
                            const KvPages& pages) {
  return MlaPrefill(pass.device, {.q = pass.a.q,
                                  .kv_b = w.kv_b,
                                  .pages = pages,
                                  .batch = pass.batch,
                                  .out = pass.a.heads_out,
                                  .softmax_scale = pass.softmax_scale});
}

// W_UK moves to the query and W_UV behind the sum, so that a key costs one latent to read.
absl::Status AttendAbsorbed(const PassContext& pass, const AttentionWeights& w,
                            const KvPages& pages) {
  kernels::Device& device = pass.device;
  const Activations& a = pass.a;
  BATON_RETURN_IF_ERROR(MlaAbsorbQ(
      device, {.q = a.q, .kv_b = w.kv_b, .out = a.q_latent, .v = pass.config.v_head_dim}));
  BATON_RETURN_IF_ERROR(MlaDecode(device, {.q_lat = a.q_latent,
                                           .q = a.q,
                                           .pages = pages,
                                           .batch = pass.batch,
                                           .out = a.out_latent,
                                           .softmax_scale = pass.softmax_scale}));
  return MlaExpandV(device, {.o_lat = a.out_latent, .kv_b = w.kv_b, .out = a.heads_out});
}

}  // namespace

absl::Status WriteLatentsAndQueries(const PassContext& pass, const AttentionWeights& w,
                                    const KvPages& pages) {
  BATON_RETURN_IF_ERROR(QuantizeNormed(pass));
  BATON_RETURN_IF_ERROR(ProjectQ(pass, w));
  BATON_RETURN_IF_ERROR(ProjectLatents(pass, w));
  kernels::RopeAndPageArgs args = RopeLatents(pass, w, pages);
  args.q = pass.a.q;
  return RopeAndPage(pass.device, args);
}

absl::Status WriteLatents(const PassContext& pass, const AttentionWeights& w,
                          const KvPages& pages) {
  BATON_RETURN_IF_ERROR(QuantizeNormed(pass));
  BATON_RETURN_IF_ERROR(ProjectLatents(pass, w));
  return RopeAndPage(pass.device, RopeLatents(pass, w, pages));
}

absl::Status MakeQueries(const PassContext& pass, const AttentionWeights& w, const KvPages& pages) {
  BATON_RETURN_IF_ERROR(QuantizeNormed(pass));
  BATON_RETURN_IF_ERROR(ProjectQ(pass, w));
  return RopeAndPage(pass.device, {.q = pass.a.q,
                                   .cos = pass.cos,
                                   .sin = pass.sin,
                                   .positions = pass.a.positions,
                                   .pages = pages});
}

absl::Status Attend(const PassContext& pass, const AttentionWeights& w, const KvPages& pages) {
  const Activations& a = pass.a;
  BATON_RETURN_IF_ERROR(pass.form == scheduler::Form::kPrefill ? AttendExpanded(pass, w, pages)
                                                               : AttendAbsorbed(pass, w, pages));
  BATON_RETURN_IF_ERROR(ExchangeHeads(pass));
  BATON_ASSIGN_OR_RETURN(const LinearInput in, InputFor(pass, Flat(a.own_heads), w.o));
  return Linear(
      pass.device,
      {.x = in.x, .x_scales = in.scales, .w = w.o, .out = a.hidden, .epilogue = Epilogue::kAdd});
}

}  // namespace baton::model
