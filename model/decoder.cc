#include "model/decoder.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "model/mla.h"
#include "model/moe.h"

namespace baton::model {
namespace {

using kernels::DType;
using kernels::TensorView;

// No sequence is longer than all pages together.
int32_t PositionsWithin(const ModelConfig& config, int32_t page_tokens, int32_t total_pages) {
  return static_cast<int32_t>(
      std::min<int64_t>(config.max_positions, int64_t{page_tokens} * total_pages));
}

int32_t LocalHeads(const ModelConfig& config, const RankGroup& group) {
  if (!group.tensor()) return config.heads;
  return static_cast<int32_t>(HeadsOf(config.heads, group.rank(), group.ranks()).size());
}

PassLimits LimitsOf(const ModelConfig& config, const DecoderOptions& options, int32_t max_positions,
                    int32_t page_tokens) {
  return {.max_rows = options.max_rows,
          .max_sequence_pages = (max_positions + page_tokens - 1) / page_tokens,
          .max_logit_rows = options.max_logit_rows,
          .act = options.act,
          .row_ranks = options.group.tensor() ? options.group.ranks() : 1,
          .heads = LocalHeads(config, options.group)};
}

size_t RopeTableBytes(const ModelConfig& config, int32_t positions) {
  return static_cast<size_t>(positions) * (config.qk_rope_head_dim / 2) * sizeof(float);
}

template <typename T>
absl::Status CopyIndices(kernels::Device& device, const std::vector<T>& values,
                         const TensorView& to) {
  BATON_CHECK_LE(values.size(), static_cast<size_t>(to.elements()));
  return device.CopyToDevice(to.data, values.data(), values.size() * sizeof(T));
}

}  // namespace

Decoder::Decoder(kernels::Device& device, const LoadedModel& model, KvCache& cache,
                 const DecoderOptions& options)
    : device_(device),
      model_(model),
      cache_(cache),
      options_(options),
      plan_limits_(
          {.max_rows = options.max_rows,
           .max_positions = PositionsWithin(model.config, cache.page_tokens(), cache.total_pages()),
           .page_tokens = cache.page_tokens(),
           .total_pages = cache.total_pages(),
           .vocab_size = model.config.vocab_size}) {}

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Create(kernels::Device& device,
                                                         const LoadedModel& model, KvCache& cache,
                                                         const DecoderOptions& options) {
  const ModelConfig& config = model.config;
  if (options.group.tensor() && options.group.ranks() > config.heads) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a tensor-parallel group of ", options.group.ranks(), " ranks cannot split the ",
        config.heads, " heads of ", model.name, "; use at most that many ranks"));
  }
  std::unique_ptr<Decoder> decoder(new Decoder(device, model, cache, options));
  const int32_t positions = decoder->plan_limits_.max_positions;
  const PassLimits limits = LimitsOf(config, options, positions, cache.page_tokens());
  int64_t bytes = 0;
  LayOutActivations(config, limits, nullptr, bytes);
  BATON_ASSIGN_OR_RETURN(decoder->scratch_, device.Allocate(static_cast<size_t>(bytes)));
  decoder->activations_ = LayOutActivations(config, limits, decoder->scratch_.data(), bytes);

  const size_t table_bytes = RopeTableBytes(config, positions);
  BATON_ASSIGN_OR_RETURN(decoder->rope_, device.Allocate(2 * table_bytes));
  uint8_t* const table = static_cast<uint8_t*>(decoder->rope_.data());
  decoder->cos_ =
      TensorView::Contiguous(table, DType::kF32, {positions, config.qk_rope_head_dim / 2});
  decoder->sin_ = TensorView::Contiguous(table + table_bytes, DType::kF32,
                                         {positions, config.qk_rope_head_dim / 2});
  const RopeTable values = MakeRopeTable(config, positions);
  BATON_RETURN_IF_ERROR(device.CopyToDevice(decoder->cos_.data, values.cos.data(), table_bytes));
  BATON_RETURN_IF_ERROR(device.CopyToDevice(decoder->sin_.data, values.sin.data(), table_bytes));
  if (!options.group.solo()) {
    BATON_ASSIGN_OR_RETURN(decoder->exchange_,
                           ExpertExchange::Create(device, options.group,
                                                  {.hidden = config.hidden_size,
                                                   .inner = config.moe_intermediate_size,
                                                   .choices = config.experts_per_token,
                                                   .act = options.act}));
    BATON_ASSIGN_OR_RETURN(
        scheduler::ExpertPlacement in_order,
        scheduler::ExpertPlacement::InOrder(TopologyOf(config, options.group.ranks())));
    BATON_RETURN_IF_ERROR(decoder->InstallExperts(
        {.placement = std::make_shared<const scheduler::ExpertPlacement>(std::move(in_order))}));
  }
  return decoder;
}

absl::Status Decoder::InstallExperts(const scheduler::ActiveExperts& active) {
  BATON_CHECK(!options_.group.solo());
  BATON_ASSIGN_OR_RETURN(tables_,
                         ExpertTables::Create(device_, model_.config, model_.weights, active,
                                              options_.group.ranks(), options_.group.rank()));
  return absl::OkStatus();
}

absl::Status Decoder::Upload(const Batch& batch, kernels::PagedBatch& paged) {
  const Activations& a = activations_;
  BATON_RETURN_IF_ERROR(CopyIndices(device_, batch.ids, a.ids));
  BATON_RETURN_IF_ERROR(CopyIndices(device_, batch.positions, a.positions));
  BATON_RETURN_IF_ERROR(CopyIndices(device_, batch.slots, a.slots));
  BATON_RETURN_IF_ERROR(CopyIndices(device_, batch.query_start, a.query_start));
  BATON_RETURN_IF_ERROR(CopyIndices(device_, batch.context_len, a.context_len));
  BATON_RETURN_IF_ERROR(CopyIndices(device_, batch.page_table, a.page_table));
  paged.query_start = a.query_start.Slice(0, 0, batch.sequences + 1);
  paged.context_len = a.context_len.Slice(0, 0, batch.sequences);
  paged.page_table = TensorView::Contiguous(a.page_table.data, DType::kI32,
                                            {batch.sequences, batch.sequence_pages});
  return absl::OkStatus();
}

absl::Status Decoder::Forward(const scheduler::BatchPlan& plan, LayerObserver* observer,
                              LogitRows logit_rows) {
  BATON_RETURN_IF_ERROR(CheckPlan(plan, plan_limits_));
  BuildBatch(plan, cache_.page_tokens(), batch_);
  own_ = {0, batch_.rows, batch_.rows};
  if (options_.group.tensor()) {
    own_ = ShareOf(batch_.rows, options_.group.rank(), options_.group.ranks());
  }
  const Activations a = activations_.ForRows(batch_.rows, own_);
  PassContext pass{.device = device_,
                   .config = model_.config,
                   .a = a,
                   .group = options_.group,
                   .own = own_,
                   .form = batch_.form,
                   .cos = cos_,
                   .sin = sin_,
                   .softmax_scale = static_cast<float>(SoftmaxScale(model_.config))};
  BATON_RETURN_IF_ERROR(Upload(batch_, pass.batch));
  BATON_RETURN_IF_ERROR(
      Embed(device_, {.ids = a.own_ids, .table = model_.weights.embed, .out = a.hidden}));
  finished_rows_.clear();
  finished_ = a.hidden;
  int32_t end = 0;
  for (const scheduler::SequenceSlice& slice : plan.slices) {
    end += slice.row_count;
    const bool all = logit_rows == LogitRows::kAll || options_.group.tensor();
    for (int32_t row = all ? end - slice.row_count : end - 1; row < end; ++row) {
      if (all || slice.sample) finished_rows_.push_back(row);
    }
  }
  BATON_RETURN_IF_ERROR(RunLayers(pass, observer));
  if (!AllRowsFinish()) BATON_RETURN_IF_ERROR(FinishLastLayerOf(pass, plan));
  return device_.Synchronize();
}

bool Decoder::AllRowsFinish() const {
  return finished_rows_.size() == static_cast<size_t>(batch_.rows);
}

// All layers; unless all rows finish, the last one only as far as the latents.
absl::Status Decoder::RunLayers(const PassContext& pass, LayerObserver* observer) {
  const ModelConfig& config = model_.config;
  const Activations& a = pass.a;
  for (int32_t i = 0; i < config.layers; ++i) {
    const LayerWeights& layer = model_.weights.layers[i];
    const bool stop = i + 1 == config.layers && !AllRowsFinish();
    BATON_RETURN_IF_ERROR(RmsNorm(
        device_,
        {.x = a.hidden, .weight = layer.input_norm, .out = a.normed, .eps = config.rms_norm_eps}));
    BATON_RETURN_IF_ERROR(stop ? WriteLatents(pass, layer.attention, cache_.pages(i))
                               : WriteLatentsAndQueries(pass, layer.attention, cache_.pages(i)));
    if (observer != nullptr) {
      BATON_RETURN_IF_ERROR(device_.Synchronize());  // the observer reads the pages
      observer->OnLayerWritten(i);
    }
    if (!stop) BATON_RETURN_IF_ERROR(FinishLayer(pass, i));
  }
  return absl::OkStatus();
}

// From the queries on.
absl::Status Decoder::FinishLayer(const PassContext& pass, int32_t i) {
  const ModelConfig& config = model_.config;
  const LayerWeights& layer = model_.weights.layers[i];
  const Activations& a = pass.a;
  BATON_RETURN_IF_ERROR(Attend(pass, layer.attention, cache_.pages(i)));
  BATON_RETURN_IF_ERROR(RmsNorm(device_, {.x = a.hidden,
                                          .weight = layer.post_attn_norm,
                                          .out = a.normed,
                                          .eps = config.rms_norm_eps}));
  if (config.is_dense(i)) return RunMlp(pass, layer.mlp);
  if (exchange_ == nullptr) return RunMoe(pass, layer.moe);
  return RunMoeInGroup(pass, layer.moe, tables_, i - config.dense_layers, *exchange_);
}

// The last layer, from the latents on, of the finishing rows: a pass of these rows alone. Each is
// the last one of its slice.
absl::Status Decoder::FinishLastLayerOf(const PassContext& pass, const scheduler::BatchPlan& plan) {
  const int32_t last = model_.config.layers - 1;
  const LayerWeights& layer = model_.weights.layers[last];
  picked_plan_.form = plan.form;
  picked_plan_.slices.clear();
  for (const scheduler::SequenceSlice& slice : plan.slices) {
    if (!slice.sample) continue;
    picked_plan_.slices.push_back(slice);
    picked_plan_.slices.back().first_position += slice.row_count - 1;
    picked_plan_.slices.back().row_count = 1;
  }
  const auto rows = static_cast<int32_t>(picked_plan_.slices.size());
  picked_plan_.total_rows = rows;
  BuildBatch(picked_plan_, cache_.page_tokens(), picked_batch_);
  picked_batch_.ids = finished_rows_;            // what to gather
  BATON_RETURN_IF_ERROR(device_.Synchronize());  // ops in flight read the arrays of the whole pass
  const Share own{0, rows, rows};
  Activations a = activations_.ForRows(rows, own);
  a.hidden = a.picked;
  PassContext picked = pass.Of(a, own);
  BATON_RETURN_IF_ERROR(Upload(picked_batch_, picked.batch));
  BATON_RETURN_IF_ERROR(
      Embed(device_, {.ids = a.own_ids, .table = pass.a.hidden, .out = a.hidden}));
  BATON_RETURN_IF_ERROR(RmsNorm(device_, {.x = a.hidden,
                                          .weight = layer.input_norm,
                                          .out = a.normed,
                                          .eps = model_.config.rms_norm_eps}));
  BATON_RETURN_IF_ERROR(MakeQueries(picked, layer.attention, cache_.pages(last)));
  BATON_RETURN_IF_ERROR(FinishLayer(picked, last));
  finished_ = a.hidden;
  return absl::OkStatus();
}

absl::Status Decoder::NormHeadRows(std::span<const int32_t> rows) {
  const int64_t count = static_cast<int64_t>(rows.size());
  std::vector<int64_t> at;  // where the rows stand in finished_
  for (const int32_t row : rows) {
    const auto it = std::lower_bound(finished_rows_.begin(), finished_rows_.end(), row);
    BATON_CHECK(it != finished_rows_.end() && *it == row);
    at.push_back(it - finished_rows_.begin());
  }
  // The norm gathers: one call for each run of adjacent rows (most passes have but one).
  for (int64_t begin = 0; begin < count;) {
    int64_t end = begin + 1;
    while (end < count && at[end] == at[end - 1] + 1) ++end;
    BATON_RETURN_IF_ERROR(RmsNorm(device_, {.x = finished_.Slice(0, at[begin], at[end - 1] + 1),
                                            .weight = model_.weights.norm,
                                            .out = activations_.head_in.Slice(0, begin, end),
                                            .eps = model_.config.rms_norm_eps}));
    begin = end;
  }
  return absl::OkStatus();
}

// Shares ascend with the ranks, so rows that come rank after rank are in order.
absl::Status Decoder::SendHeadRows(std::span<const int32_t> rows) {
  const RankGroup& group = options_.group;
  const size_t row_bytes = static_cast<size_t>(model_.config.hidden_size) * sizeof(float);
  std::vector<size_t> send(static_cast<size_t>(group.ranks())), receive(send);
  int64_t sent = 0;
  for (const int32_t row : rows) {
    const size_t owner = static_cast<size_t>(row / own_.stride);
    if (group.rank() == 0) receive[owner] += row_bytes;
    if (row < own_.begin || row >= own_.end) continue;
    std::memcpy(activations_.head_sent.row<float>(sent++),
                activations_.hidden.row<float>(row - own_.begin), row_bytes);
  }
  send[0] = static_cast<size_t>(sent) * row_bytes;
  const size_t received = group.rank() == 0 ? rows.size() * row_bytes : 0;
  return group.collectives->AllToAllV(
      {static_cast<const std::byte*>(activations_.head_sent.data), send[0]}, send,
      {static_cast<std::byte*>(activations_.head_rows.data), received}, receive, group.timeout);
}

absl::StatusOr<TensorView> Decoder::Logits(std::span<const int32_t> rows) {
  BATON_CHECK_LE(rows.size(), static_cast<size_t>(options_.max_logit_rows));
  BATON_CHECK(rows.empty() || (rows.front() >= 0 && rows.back() < batch_.rows));
  const int64_t count = static_cast<int64_t>(rows.size());
  const TensorView head_in = activations_.head_in.Slice(0, 0, count);
  if (options_.group.tensor()) {
    BATON_RETURN_IF_ERROR(SendHeadRows(rows));
    if (options_.group.rank() != 0) return TensorView{};
    BATON_RETURN_IF_ERROR(RmsNorm(device_, {.x = activations_.head_rows.Slice(0, 0, count),
                                            .weight = model_.weights.norm,
                                            .out = head_in,
                                            .eps = model_.config.rms_norm_eps}));
  } else {
    BATON_RETURN_IF_ERROR(NormHeadRows(rows));
  }
  const TensorView logits = activations_.logits.Slice(0, 0, count);
  BATON_RETURN_IF_ERROR(Linear(device_, {.x = head_in, .w = model_.weights.head, .out = logits}));
  return logits;
}

int64_t DecoderBytes(const ModelConfig& config, const DecoderOptions& options, int32_t page_tokens,
                     int32_t total_pages) {
  const int32_t positions = PositionsWithin(config, page_tokens, total_pages);
  int64_t bytes = 0;
  LayOutActivations(config, LimitsOf(config, options, positions, page_tokens), nullptr, bytes);
  return bytes + 2 * static_cast<int64_t>(RopeTableBytes(config, positions));
}

}  // namespace baton::model
