#include "model/decoder.h"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "model/linear_input.h"
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
          .heads = LocalHeads(config, options.group),
          .fp8 = options.fp8_activations && config.weight_format == WeightFormat::kFp8Block};
}

size_t RopeTableBytes(const ModelConfig& config, int32_t positions) {
  return static_cast<size_t>(positions) * (config.qk_rope_head_dim / 2) * sizeof(float);
}

template <typename T>
absl::Status CopyIndices(kernels::Device& device, const std::vector<T>& values,
                         const TensorView& to) {
  BATON_CHECK_LE(values.size(), static_cast<size_t>(to.elements()));
  return device.EnqueueCopyToDevice(to.data, values.data(), values.size() * sizeof(T));
}

}  // namespace

Decoder::Decoder(kernels::Device& device, const LoadedModel& model, RankWeights& weights,
                 KvCache& cache, const DecoderOptions& options)
    : device_(device),
      model_(model),
      rank_weights_(weights),
      weights_(weights.weights()),
      cache_(cache),
      options_(options),
      plan_limits_(
          {.max_rows = options.max_rows,
           .max_positions = PositionsWithin(model.config, cache.page_tokens(), cache.total_pages()),
           .page_tokens = cache.page_tokens(),
           .total_pages = cache.total_pages(),
           .vocab_size = model.config.vocab_size}) {}

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Create(kernels::Device& device,
                                                         const LoadedModel& model,
                                                         RankWeights& weights, KvCache& cache,
                                                         const DecoderOptions& options) {
  const ModelConfig& config = model.config;
  if (options.group.tensor() && options.group.ranks() > config.heads) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a tensor-parallel group of ", options.group.ranks(), " ranks cannot split the ",
        config.heads, " heads of ", model.name, "; use at most that many ranks"));
  }
  std::unique_ptr<Decoder> decoder(new Decoder(device, model, weights, cache, options));
  const int32_t positions = decoder->plan_limits_.max_positions;
  const PassLimits limits = LimitsOf(config, options, positions, cache.page_tokens());
  int64_t bytes = 0;
  LayOutActivations(config, limits, nullptr, bytes);
  BATON_ASSIGN_OR_RETURN(decoder->scratch_, device.Allocate(static_cast<size_t>(bytes)));
  decoder->activations_ = LayOutActivations(config, limits, decoder->scratch_.data(), bytes);

  if (device.can_record() && !options.group.tensor()) {
    decoder->recorded_ = std::make_unique<RecordedPasses>(device);
  }
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
    const bool overlaps =
        options.group.overlap_rows > 0 && !options.group.tensor() && device.host_memory();
    for (int32_t part = 0; part < (overlaps ? kMaxParts : 1); ++part) {
      decoder->exchanges_[static_cast<size_t>(part)] = std::make_unique<ExpertExchange>(
          device, options.group,
          ExpertExchange::Shape{.hidden = config.hidden_size,
                                .inner = config.moe_intermediate_size,
                                .choices = config.experts_per_token,
                                .act = options.act,
                                .fp8 = options.fp8_activations && ExpertsReadCodes(model)});
    }
    if (overlaps) decoder->queue_ = std::make_unique<CallQueue>("collectives");
    scheduler::ActiveExperts first;
    BATON_ASSIGN_OR_RETURN(first.placement, FirstPlacement(config, options.group));
    BATON_RETURN_IF_ERROR(decoder->InstallExperts(first));
    if (options.group.split == Split::kExpert) BATON_RETURN_IF_ERROR(decoder->AllocateCounts());
  }
  return decoder;
}

absl::Status Decoder::InstallExperts(const scheduler::ActiveExperts& active) {
  BATON_CHECK(!options_.group.solo());
  BATON_ASSIGN_OR_RETURN(
      tables_, ExpertTables::Create(device_, model_.config, rank_weights_, active,
                                    options_.group.ranks(), options_.group.rank(), tables_memory_));
  // Recorded ops have the addresses of the weights that were in use.
  if (recorded_ != nullptr) recorded_->Forget();
  return absl::OkStatus();
}

PassContext Decoder::ContextOf(const Part& part) const {
  return {.device = device_,
          .config = model_.config,
          .a = part.a,
          .group = options_.group,
          .own = part.own,
          .form = part.batch.form,
          .cos = cos_,
          .sin = sin_,
          .softmax_scale = static_cast<float>(SoftmaxScale(model_.config))};
}

absl::Status Decoder::Upload(const Part& part, kernels::PagedBatch& paged) {
  const Batch& batch = part.batch;
  const Activations& a = part.a;
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
  paged.context_tokens =
      std::accumulate(batch.context_len.begin(), batch.context_len.end(), int64_t{0});
  return absl::OkStatus();
}

// This rank's rows of a pass.
Share Decoder::OwnRows(int32_t rows) const {
  const RankGroup& group = options_.group;
  return group.tensor() ? ShareOf(rows, group.rank(), group.ranks()) : Share{0, rows, rows};
}

// Fills the first `parts` of parts_. A part is some whole slices.
void Decoder::SplitPlan(const scheduler::BatchPlan& plan, int32_t parts) {
  if (parts == 1) {
    Part& whole = parts_[0];
    BuildBatch(plan, cache_.page_tokens(), whole.batch);
    whole.own = OwnRows(plan.total_rows);
    whole.a = activations_.ForRows(plan.total_rows, whole.own);
    return;
  }
  for (scheduler::BatchPlan& part : part_plans_) {
    part.step = plan.step;
    part.form = plan.form;
    part.slices.clear();
    part.total_rows = 0;
  }
  for (const scheduler::SequenceSlice& slice : plan.slices) {
    scheduler::BatchPlan& part =
        part_plans_[part_plans_[0].total_rows * 2 < plan.total_rows ? 0 : 1];
    part.slices.push_back(slice);
    part.total_rows += slice.row_count;
  }
  Activations left = activations_;
  for (size_t p = 0; p < parts_.size(); ++p) {
    Part& part = parts_[p];
    BuildBatch(part_plans_[p], cache_.page_tokens(), part.batch);
    const int32_t rows = part.batch.rows;
    part.own = OwnRows(rows);
    part.a = left.ForRows(rows, part.own);
    left = left.Behind(rows, part.batch.sequences,
                       int64_t{part.batch.sequences} * part.batch.sequence_pages);
  }
}

// Rows of the plan that will be asked for logits, or may be.
void Decoder::ListFinishedRows(const scheduler::BatchPlan& plan, LogitRows logit_rows) {
  finished_rows_.clear();
  const bool all = logit_rows == LogitRows::kAll || options_.group.tensor();
  int32_t end = 0;
  for (const scheduler::SequenceSlice& slice : plan.slices) {
    end += slice.row_count;
    for (int32_t row = all ? end - slice.row_count : end - 1; row < end; ++row) {
      if (all || slice.sample) finished_rows_.push_back(row);
    }
  }
}

bool Decoder::AllRowsFinish() const { return finished_rows_.size() == static_cast<size_t>(rows_); }

absl::Status Decoder::Forward(const scheduler::BatchPlan& plan, LayerObserver* observer,
                              LogitRows logit_rows, int32_t parts, int32_t most_rows) {
  BATON_CHECK(parts == 1 || (parts == 2 && queue_ != nullptr));
  BATON_RETURN_IF_ERROR(CheckPlan(plan, plan_limits_));
  BATON_RETURN_IF_ERROR(CheckGroup());
  rows_ = plan.total_rows;
  own_ = OwnRows(rows_);
  ListFinishedRows(plan, logit_rows);
  for (const auto& exchange : exchanges_) {
    if (exchange == nullptr) continue;
    exchange->UseQueue(parts > 1 ? queue_.get() : nullptr);
    exchange->UseRoom({});
    exchange->UseRecorder(nullptr);
  }
  in_room_ = most_rows > 0 && !choices_.absent() && !device_.host_memory();
  BATON_CHECK(!in_room_ || (observer == nullptr && rows_ <= most_rows));
  const absl::Status status =
      in_room_ ? RunInRoom(plan, parts, most_rows) : RunPlan(plan, observer, parts);
  if (parts > 1) queue_->WaitForAll();  // a pass that failed may have left some
  if (!status.ok()) (void)options_.group.Settle();
  return status;
}

// What is under way may wait for other ranks.
absl::Status Decoder::Await() {
  BATON_RETURN_IF_ERROR(options_.group.Settle());
  return device_.Synchronize();
}

absl::Status Decoder::RunPlan(const scheduler::BatchPlan& plan, LayerObserver* observer,
                              int32_t parts) {
  SplitPlan(plan, parts);
  const bool recordable = IsRecordable(plan, observer);
  PassShape shape;
  if (recordable) shape = PadPlan();
  std::vector<PassContext> passes;
  for (int32_t p = 0; p < parts; ++p) {
    const Part& part = parts_[static_cast<size_t>(p)];
    PassContext& pass = passes.emplace_back(ContextOf(part));
    BATON_RETURN_IF_ERROR(Upload(part, pass.batch));
  }
  finished_ = activations_.ForRows(rows_, own_).hidden;
  const auto launch = [&]() -> absl::Status {
    for (const PassContext& pass : passes) {
      BATON_RETURN_IF_ERROR(
          Embed(device_, {.ids = pass.a.own_ids, .table = weights_.embed, .out = pass.a.hidden}));
    }
    return RunLayers(passes, observer);
  };
  BATON_RETURN_IF_ERROR(recordable ? RunRecorded(shape, launch) : launch());
  if (!AllRowsFinish()) BATON_RETURN_IF_ERROR(FinishLastLayerOf(plan, parts));
  if (in_room_) BATON_RETURN_IF_ERROR(GatherMostPairs());
  return Await();
}

absl::Status Decoder::TellWritten(int32_t layer, LayerObserver* observer,
                                  std::unique_ptr<kernels::Fence>& written) {
  // The point lies behind calls of the ranks, and a wait for it knows no deadline. Where the
  // layer's rows travel to experts the device has been settled since.
  if (!ExchangesRows(layer)) BATON_RETURN_IF_ERROR(options_.group.Settle());
  BATON_RETURN_IF_ERROR(written->Wait());
  written = nullptr;
  observer->OnLayerWritten(layer);
  return absl::OkStatus();
}

// All layers; unless all rows finish, the last one only as far as the latents. Of two parts, the
// rows of one travel to experts while the other attends, and home while the other's experts run or
// it attends in the next layer.
absl::Status Decoder::RunLayers(std::span<const PassContext> passes, LayerObserver* observer) {
  const ModelConfig& config = model_.config;
  std::unique_ptr<kernels::Fence> written;  // the layer's latents; the observer was not told yet
  for (int32_t i = 0; i < config.layers; ++i) {
    const LayerWeights& layer = weights_.layers[i];
    const bool stop = i + 1 == config.layers && !AllRowsFinish();
    for (size_t p = 0; p < passes.size(); ++p) {
      const PassContext& pass = passes[p];
      if (i > 0) BATON_RETURN_IF_ERROR(EndLayer(pass, i - 1, exchanges_[p].get()));
      BATON_RETURN_IF_ERROR(RmsNorm(device_, {.x = pass.a.hidden,
                                              .weight = layer.input_norm,
                                              .out = pass.a.normed,
                                              .eps = config.rms_norm_eps}));
      BATON_RETURN_IF_ERROR(stop ? WriteLatents(pass, layer.attention, cache_.pages(i))
                                 : WriteLatentsAndQueries(pass, layer.attention, cache_.pages(i)));
      if (observer != nullptr && p + 1 == passes.size()) {
        BATON_ASSIGN_OR_RETURN(written, device_.Mark());
        if (device_.host_memory()) BATON_RETURN_IF_ERROR(TellWritten(i, observer, written));
      }
      if (!stop) BATON_RETURN_IF_ERROR(AttendAndBegin(pass, i, exchanges_[p].get()));
    }
    if (!stop) BATON_RETURN_IF_ERROR(RunExperts(passes, i));
    // A queue goes on with the layer while the observer ships its latents.
    if (written != nullptr) BATON_RETURN_IF_ERROR(TellWritten(i, observer, written));
  }
  if (!AllRowsFinish()) return absl::OkStatus();
  for (size_t p = 0; p < passes.size(); ++p) {
    BATON_RETURN_IF_ERROR(EndLayer(passes[p], config.layers - 1, exchanges_[p].get()));
  }
  return absl::OkStatus();
}

// Whether the layer's experts lie on other ranks too.
bool Decoder::ExchangesRows(int32_t layer) const {
  return !options_.group.solo() && !model_.config.is_dense(layer);
}

// From the queries to the rows on their way to their experts, or, where none travel, to the end.
absl::Status Decoder::AttendAndBegin(const PassContext& pass, int32_t i, ExpertExchange* exchange) {
  const LayerWeights& layer = weights_.layers[i];
  BATON_RETURN_IF_ERROR(Attend(pass, layer.attention, cache_.pages(i)));
  BATON_RETURN_IF_ERROR(RmsNorm(device_, {.x = pass.a.hidden,
                                          .weight = layer.post_attn_norm,
                                          .out = pass.a.normed,
                                          .eps = model_.config.rms_norm_eps}));
  if (model_.config.is_dense(i)) return RunMlp(pass, layer.mlp);
  if (!ExchangesRows(i)) return RunMoe(pass, layer.moe);
  const int32_t moe_layer = i - model_.config.dense_layers;
  BATON_RETURN_IF_ERROR(BeginMoeInGroup(pass, layer.moe, tables_, moe_layer, *exchange));
  if (choices_.absent()) return absl::OkStatus();
  return MoeCount(
      device_,
      {.experts = pass.a.experts,
       .choices =
           choices_.Slice(0, moe_layer, moe_layer + 1).Reshape({model_.config.routed_experts}),
       .slots = pass.a.slots});
}

absl::Status Decoder::RunExperts(std::span<const PassContext> passes, int32_t i) {
  if (!ExchangesRows(i)) return absl::OkStatus();
  for (size_t p = 0; p < passes.size(); ++p) {
    BATON_RETURN_IF_ERROR(
        RunMoeInGroup(passes[p], tables_, i - model_.config.dense_layers, *exchanges_[p]));
  }
  return absl::OkStatus();
}

absl::Status Decoder::EndLayer(const PassContext& pass, int32_t i, ExpertExchange* exchange) {
  return ExchangesRows(i) ? EndMoeInGroup(pass, *exchange) : absl::OkStatus();
}

// The last layer, from the latents on, of the finishing rows: a pass of these rows alone. Each is
// the last one of its slice.
absl::Status Decoder::FinishLastLayerOf(const scheduler::BatchPlan& plan, int32_t parts) {
  const int32_t last = model_.config.layers - 1;
  const LayerWeights& layer = weights_.layers[last];
  picked_plan_.form = plan.form;
  picked_plan_.slices.clear();
  for (const scheduler::SequenceSlice& slice : plan.slices) {
    if (!slice.sample) continue;
    picked_plan_.slices.push_back(slice);
    picked_plan_.slices.back().first_position += slice.row_count - 1;
    picked_plan_.slices.back().row_count = 1;
  }
  picked_plan_.total_rows = static_cast<int32_t>(picked_plan_.slices.size());
  const TensorView hidden = finished_;  // of all rows
  BATON_RETURN_IF_ERROR(Await());       // ops in flight read the arrays of the whole pass
  SplitPlan(picked_plan_, parts);
  std::vector<PassContext> passes;
  int32_t begin = 0;
  for (int32_t p = 0; p < parts; ++p) {
    Part& part = parts_[static_cast<size_t>(p)];
    const int32_t rows = part.batch.rows;
    const auto first = finished_rows_.begin() + begin;
    part.batch.ids.assign(first, first + rows);  // what to gather
    begin += rows;
    part.a.hidden = part.a.picked;
    PassContext& pass = passes.emplace_back(ContextOf(part));
    BATON_RETURN_IF_ERROR(Upload(part, pass.batch));
    BATON_RETURN_IF_ERROR(
        Embed(device_, {.ids = part.a.own_ids, .table = hidden, .out = part.a.hidden}));
    BATON_RETURN_IF_ERROR(RmsNorm(device_, {.x = part.a.hidden,
                                            .weight = layer.input_norm,
                                            .out = part.a.normed,
                                            .eps = model_.config.rms_norm_eps}));
    BATON_RETURN_IF_ERROR(MakeQueries(pass, layer.attention, cache_.pages(last)));
    BATON_RETURN_IF_ERROR(AttendAndBegin(pass, last, exchanges_[static_cast<size_t>(p)].get()));
  }
  BATON_RETURN_IF_ERROR(RunExperts(passes, last));
  for (size_t p = 0; p < passes.size(); ++p) {
    BATON_RETURN_IF_ERROR(EndLayer(passes[p], last, exchanges_[p].get()));
  }
  finished_ = activations_.picked.Slice(0, 0, picked_plan_.total_rows);
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
                                            .weight = weights_.norm,
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
  std::vector<int32_t> own;  // of this rank's
  for (const int32_t row : rows) {
    const size_t owner = static_cast<size_t>(row / own_.stride);
    if (group.rank() == 0) receive[owner] += row_bytes;
    if (row >= own_.begin && row < own_.end) own.push_back(row - static_cast<int32_t>(own_.begin));
  }
  const int64_t sent = static_cast<int64_t>(own.size());
  BATON_RETURN_IF_ERROR(CopyIndices(device_, own, activations_.head_index));
  BATON_RETURN_IF_ERROR(
      kernels::CopyRows(device_, {.x = activations_.hidden,
                                  .index = activations_.head_index.Slice(0, 0, sent),
                                  .out = activations_.head_sent.Slice(0, 0, sent)}));
  send[0] = own.size() * row_bytes;
  const size_t received = group.rank() == 0 ? rows.size() * row_bytes : 0;
  BATON_RETURN_IF_ERROR(group.data().AllToAllV(
      {static_cast<const std::byte*>(activations_.head_sent.data), send[0]}, send,
      {static_cast<std::byte*>(activations_.head_rows.data), received}, receive, group.timeout));
  return group.Settle();
}

absl::StatusOr<TensorView> Decoder::Logits(std::span<const int32_t> rows) {
  BATON_CHECK_LE(rows.size(), static_cast<size_t>(options_.max_logit_rows));
  BATON_CHECK(rows.empty() || (rows.front() >= 0 && rows.back() < rows_));
  const int64_t count = static_cast<int64_t>(rows.size());
  const TensorView head_in = activations_.head_in.Slice(0, 0, count);
  if (options_.group.tensor()) {
    BATON_RETURN_IF_ERROR(SendHeadRows(rows));
    if (options_.group.rank() != 0) return TensorView{};
    BATON_RETURN_IF_ERROR(RmsNorm(device_, {.x = activations_.head_rows.Slice(0, 0, count),
                                            .weight = weights_.norm,
                                            .out = head_in,
                                            .eps = model_.config.rms_norm_eps}));
  } else {
    BATON_RETURN_IF_ERROR(NormHeadRows(rows));
  }
  const TensorView logits = activations_.logits.Slice(0, 0, count);
  BATON_RETURN_IF_ERROR(Linear(device_, {.x = head_in, .w = weights_.head, .out = logits}));
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
