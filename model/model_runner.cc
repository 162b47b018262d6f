#include "model/model_runner.h"

#include <algorithm>
#include <array>
#include <functional>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "model/expert_host.h"
#include "model/expert_prefetch.h"
#include "model/expert_tables.h"
#include "model/kv_cache.h"
#include "model/rank_weights.h"
#include "model/sampler.h"

namespace baton::model {
namespace {

const char* FormatName(kernels::KvFormat format) {
  switch (format) {
    case kernels::KvFormat::kBF16:
      return "bf16";
    case kernels::KvFormat::kFP8:
      return "fp8";
    case kernels::KvFormat::kF32:
      return "f32";
  }
  return "?";
}

absl::Status CheckOptions(const RunnerOptions& options) {
  const auto check = [](const char* name, int64_t value, int64_t low, int64_t high) {
    if (value >= low && value <= high) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("runner option ", name, " is ", value, ", expected ", low, "..", high));
  };
  BATON_RETURN_IF_ERROR(check("page_tokens", options.page_tokens, 16, 256));
  BATON_RETURN_IF_ERROR(check("total_pages", options.total_pages, 1, 1 << 24));
  BATON_RETURN_IF_ERROR(check("max_batch_rows", options.max_batch_rows, 1, 65536));
  BATON_RETURN_IF_ERROR(check("spare_experts", options.spare_experts, 0, 1'000'000));
  BATON_RETURN_IF_ERROR(check("overlap_rows", options.group.overlap_rows, 0, 65536));
  if (options.activations != kernels::DType::kBF16 && options.activations != kernels::DType::kF32) {
    return absl::InvalidArgumentError(absl::StrCat("runner option activations is ",
                                                   kernels::DTypeName(options.activations),
                                                   ", expected BF16 or F32"));
  }
  return absl::OkStatus();
}

// What ranks tell each other before a pass. Bytes on the wire: no padding.
struct StepHeader {
  uint64_t experts_version = 0;
  int32_t rows = 0;
  int32_t overlap_rows = 0;
  Dispatch dispatch = Dispatch::kActivations;
  std::array<uint8_t, 7> unused{};
};
static_assert(std::has_unique_object_representations_v<StepHeader>);

class ModelRunner final : public Runner, public ExpertHost {
 public:
  ModelRunner(std::shared_ptr<const LoadedModel> model, std::unique_ptr<kernels::Device> device,
              std::unique_ptr<kernels::Device> mover, std::unique_ptr<kernels::Device> copier,
              std::unique_ptr<RankWeights> weights, std::unique_ptr<KvCache> cache,
              std::unique_ptr<Decoder> decoder, const RankGroup& group)
      : model_(std::move(model)),
        device_(std::move(device)),
        mover_(std::move(mover)),
        copier_(std::move(copier)),
        weights_(std::move(weights)),
        cache_(std::move(cache)),
        decoder_(std::move(decoder)),
        sampler_(*device_, model_->config.vocab_size, model_->generation.eos_token_ids),
        group_(group) {
    info_.model_name = model_->name;
    info_.model_hash = model_->hash;
    info_.kv_format = FormatName(cache_->format());
    info_.layers = cache_->layers();
    info_.page_tokens = cache_->page_tokens();
    info_.entry_bytes = cache_->entry_bytes();
    info_.total_pages = cache_->total_pages();
    info_.max_positions = decoder_->plan_limits().max_positions;
    info_.vocab_size = model_->config.vocab_size;
  }

  const RunnerInfo& info() const override { return info_; }

  absl::Status Run(const scheduler::BatchPlan& plan, LayerObserver* observer,
                   scheduler::StepOutput* output) override {
    output->tokens.clear();
    output->failures.clear();
    for (const scheduler::SequenceSlice& slice : plan.slices) {
      absl::Status status = CheckSlice(slice, decoder_->plan_limits());
      if (!status.ok()) output->failures.push_back({slice.key, std::move(status)});
    }
    if (output->failures.empty()) return RunGood(plan, observer, output);
    scheduler::BatchPlan rest{.step = plan.step, .form = plan.form, .total_rows = plan.total_rows};
    for (const scheduler::SequenceSlice& slice : plan.slices) {
      if (CheckSlice(slice, decoder_->plan_limits()).ok()) {
        rest.slices.push_back(slice);
      } else {
        rest.total_rows -= slice.row_count;
      }
    }
    return RunGood(rest, observer, output);
  }

  bool WantsPass() override { return !group_.solo() && group_.collectives->PeerWaits(); }
  void SetWakeup(const std::function<void()>& wakeup) override {
    if (!group_.solo()) group_.collectives->SetWakeup(wakeup);
  }
  ExpertHost* experts() override {
    return !group_.solo() && group_.split == Split::kExpert ? this : nullptr;
  }

  scheduler::ExpertTopology topology() const override {
    return TopologyOf(model_->config, group_.ranks(),
                      scheduler::SlotsPerRank(model_->config.routed_experts,
                                              group_.redundant_experts, group_.ranks()));
  }
  absl::Status Install(const scheduler::ActiveExperts& active) override {
    return decoder_->InstallExperts(active);
  }
  std::string pass_settings() const override {
    return absl::StrCat("overlap_rows ", group_.overlap_rows, ", dispatch ",
                        DispatchName(group_.dispatch));
  }
  void BeginStep(int32_t most_rows) override { most_rows_ = most_rows; }
  void TakeChoices(std::span<int32_t> counts) override { decoder_->TakeChoices(counts); }
  int64_t ExpertBytes(int32_t layer, int32_t expert) const override {
    return BytesOf(ExpertOf(model_->config, model_->weights, layer, expert));
  }
  void BeginCopies() override {
    if (weights_->places() != nullptr) weights_->places()->ForgetCopies();
  }
  absl::Status Copy(const scheduler::ExpertCopy& copy,
                    absl::FunctionRef<bool(int64_t bytes)> may_go_on) override {
    if (weights_->places() != nullptr) {
      return weights_->places()->Copy(*copier_, copy.layer, copy.expert, may_go_on);
    }
    if (copy.source == group_.rank()) return absl::OkStatus();  // only its slot changes
    const ExpertWeights expert = ExpertOf(model_->config, model_->weights, copy.layer, copy.expert);
    for (const kernels::Weight* weight : {&expert.gate, &expert.up, &expert.down}) {
      BATON_RETURN_IF_ERROR(Prefetch(*weight, may_go_on));
    }
    return absl::OkStatus();
  }

  uint64_t PackPages(int32_t layer, std::span<const PageId> pages, int32_t token_count,
                     std::span<std::byte> out) override {
    return cache_->Pack(layer, pages, token_count, out);
  }

  absl::Status UnpackPages(int32_t layer, std::span<const PageId> pages, int32_t token_count,
                           std::span<const std::byte> bytes, uint64_t checksum) override {
    return cache_->Unpack(layer, pages, token_count, bytes, checksum);
  }

 private:
  absl::Status RunGood(const scheduler::BatchPlan& plan, LayerObserver* observer,
                       scheduler::StepOutput* output) {
    int32_t parts = 1;
    BATON_RETURN_IF_ERROR(StepTogether(plan, parts));
    const int32_t most_rows = group_.split == Split::kExpert && !group_.solo() ? most_rows_ : 0;
    BATON_RETURN_IF_ERROR(decoder_->Forward(plan, observer, LogitRows::kSampled, parts, most_rows));
    sampled_.clear();
    sampled_rows_.clear();
    int32_t row = 0;
    for (const scheduler::SequenceSlice& slice : plan.slices) {
      row += slice.row_count;
      if (!slice.sample) continue;
      sampled_.push_back(&slice);
      sampled_rows_.push_back(row - 1);
    }
    return SampleAll(output);
  }

  // Calls the other ranks into a pass, makes sure that all go about it in the same way, and finds
  // out in how many parts.
  absl::Status StepTogether(const scheduler::BatchPlan& plan, int32_t& parts) {
    if (group_.solo()) return absl::OkStatus();
    if (group_.stepped) {
      parts = PartsFor(most_rows_);
      return absl::OkStatus();
    }
    const StepHeader mine{.experts_version = decoder_->experts_version(),
                          .rows = plan.total_rows,
                          .overlap_rows = group_.overlap_rows,
                          .dispatch = group_.dispatch};
    headers_.resize(static_cast<size_t>(group_.ranks()));
    group_.collectives->Ring();
    BATON_RETURN_IF_ERROR(group_.collectives->AllGather(std::as_bytes(std::span(&mine, 1)),
                                                        std::as_writable_bytes(std::span(headers_)),
                                                        group_.timeout));
    most_rows_ = 0;
    for (int32_t rank = 0; rank < group_.ranks(); ++rank) {
      if (!group_.collectives->is_present(rank)) continue;
      const StepHeader& theirs = headers_[static_cast<size_t>(rank)];
      absl::Status status = CheckHeader(rank, theirs, mine);
      if (!status.ok()) {
        group_.collectives->Abort(status);
        return status;
      }
      most_rows_ = std::max(most_rows_, theirs.rows);
    }
    parts = PartsFor(most_rows_);
    return absl::OkStatus();
  }

  int32_t PartsFor(int32_t most_rows) const {
    return decoder_->overlaps() && most_rows >= group_.overlap_rows ? Decoder::kMaxParts : 1;
  }

  absl::Status CheckHeader(int32_t rank, const StepHeader& theirs, const StepHeader& mine) const {
    const auto differ = [&](const char* what, const auto& value, const auto& own) {
      return absl::InternalError(absl::StrCat("rank ", rank, " steps with ", what, " ", value,
                                              ", rank ", group_.rank(), " with ", own));
    };
    if (theirs.experts_version != mine.experts_version) {
      return differ("expert placement", theirs.experts_version, mine.experts_version);
    }
    if (theirs.overlap_rows != mine.overlap_rows) {
      return differ("overlap_rows", theirs.overlap_rows, mine.overlap_rows);
    }
    if (theirs.dispatch != mine.dispatch) {
      return differ("dispatch", DispatchName(theirs.dispatch), DispatchName(mine.dispatch));
    }
    return absl::OkStatus();
  }

  // The head runs in groups of rows, so that its logits need bounded memory.
  absl::Status SampleAll(scheduler::StepOutput* output) {
    const size_t group = static_cast<size_t>(decoder_->max_logit_rows());
    for (size_t begin = 0; begin < sampled_.size(); begin += group) {
      const size_t count = std::min(group, sampled_.size() - begin);
      BATON_ASSIGN_OR_RETURN(
          const kernels::TensorView logits,
          decoder_->Logits(std::span<const int32_t>(sampled_rows_).subspan(begin, count)));
      if (logits.absent()) continue;  // another rank of the group samples
      const std::span<const scheduler::SequenceSlice* const> slices(sampled_);
      BATON_RETURN_IF_ERROR(
          sampler_.Sample(slices.subspan(begin, count), logits, decoder_->logit_mask(), output));
    }
    return absl::OkStatus();
  }

  // In the order of what outlives what.
  const std::shared_ptr<const LoadedModel> model_;
  const std::unique_ptr<kernels::Device> device_;
  const std::unique_ptr<kernels::Device> mover_;   // of pages, where device_ has a queue
  const std::unique_ptr<kernels::Device> copier_;  // of experts, of the thread that calls Copy
  const std::unique_ptr<RankWeights> weights_;
  const std::unique_ptr<KvCache> cache_;
  const std::unique_ptr<Decoder> decoder_;
  Sampler sampler_;
  const RankGroup group_;
  RunnerInfo info_;
  int32_t most_rows_ = 0;                                 // of a rank in the pass to come
  std::vector<StepHeader> headers_;                       // [ranks], of the pass in progress
  std::vector<const scheduler::SequenceSlice*> sampled_;  // of the pass in progress
  std::vector<int32_t> sampled_rows_;
};

}  // namespace

DecoderOptions DecoderOptionsFor(const RunnerOptions& options) {
  constexpr int32_t kMaxLogitRows = 64;
  return {.max_rows = options.max_batch_rows,
          .max_logit_rows = std::min(options.max_batch_rows, kMaxLogitRows),
          .act = options.activations,
          .fp8_activations = options.fp8_activations,
          .group = options.group};
}

absl::StatusOr<std::unique_ptr<Runner>> CreateRunner(std::shared_ptr<const LoadedModel> model,
                                                     const RunnerOptions& options) {
  BATON_CHECK(!options.group.solo() || options.group.ranks() == 1);
  BATON_RETURN_IF_ERROR(CheckOptions(options));
  BATON_ASSIGN_OR_RETURN(std::unique_ptr<kernels::Device> device,
                         kernels::CreateDevice(options.device));
  std::unique_ptr<kernels::Device> mover, copier;
  RankWeights::Options held{.uploads = options.upload_weights || !device->host_memory(),
                            .progress = options.upload_progress};
  if (held.uploads) {
    kernels::DeviceOptions beside = options.device;
    beside.queue = nullptr;  // not behind calls that wait for other ranks
    beside.records = false;
    beside.urgent = true;  // little work, for which a decode rank waits
    BATON_ASSIGN_OR_RETURN(mover, kernels::CreateDevice(beside));
    if (!options.group.solo() && options.group.split == Split::kExpert) {
      beside.urgent = false;
      BATON_ASSIGN_OR_RETURN(copier, kernels::CreateDevice(beside));
      held.spare_experts = options.spare_experts;
    }
  }
  BATON_ASSIGN_OR_RETURN(std::unique_ptr<RankWeights> weights,
                         RankWeights::Create(*device, *model, options.group, held));
  BATON_ASSIGN_OR_RETURN(std::unique_ptr<KvCache> cache,
                         KvCache::Create(*device, model->config,
                                         {.format = options.kv_format,
                                          .page_tokens = options.page_tokens,
                                          .total_pages = options.total_pages},
                                         mover.get()));
  BATON_ASSIGN_OR_RETURN(
      std::unique_ptr<Decoder> decoder,
      Decoder::Create(*device, *model, *weights, *cache, DecoderOptionsFor(options)));
  return std::make_unique<ModelRunner>(std::move(model), std::move(device), std::move(mover),
                                       std::move(copier), std::move(weights), std::move(cache),
                                       std::move(decoder), options.group);
}

}  // namespace baton::model
