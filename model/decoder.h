#ifndef BATON_MODEL_DECODER_H_
#define BATON_MODEL_DECODER_H_

// The forward pass: token ids in, logits out, latents into the pages. Owns the scratch memory of a
// pass and the rotary tables; borrows device, model, pages and the group's collectives, which must
// outlive it. One thread. In a group, all ranks make the same calls in the same order; a
// collective's error means that the group is broken.

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "model/activations.h"
#include "model/batch.h"
#include "model/call_queue.h"
#include "model/expert_exchange.h"
#include "model/expert_tables.h"
#include "model/kv_cache.h"
#include "model/loaded_model.h"
#include "model/pair_capacity.h"
#include "model/rank_group.h"
#include "model/rank_weights.h"
#include "model/recorded_passes.h"
#include "model/runner.h"
#include "scheduler/types.h"

namespace baton::model {

struct DecoderOptions {
  int32_t max_rows = 512;
  int32_t max_logit_rows = 64;
  kernels::DType act = kernels::DType::kBF16;  // or kF32
  // Rows that meet FP8 weights are rounded to E4M3 (linear_input.h). Other bits; the same ones on
  // all ranks, whatever their number.
  bool fp8_activations = false;
  RankGroup group;
};

struct PassContext;  // model/mla.h

// Which rows of a pass will be asked for logits.
enum class LogitRows : uint8_t {
  kSampled,  // the last row of each slice with `sample`
  kAll,
};

class Decoder {
 public:
  static constexpr int32_t kMaxParts = 2;

  static absl::StatusOr<std::unique_ptr<Decoder>> Create(kernels::Device& device,
                                                         const LoadedModel& model,
                                                         RankWeights& weights, KvCache& cache,
                                                         const DecoderOptions& options);

  // Where the experts lie from the next pass on; as RankGroup::placement says until the first call.
  // The same on all ranks. Errors as ExpertTables::Create; nothing changes then. Groups only.
  absl::Status InstallExperts(const scheduler::ActiveExperts& active);
  uint64_t experts_version() const { return tables_.active().version; }

  // Adds how often the rows of this rank's passes have chosen each expert since the last call to
  // `counts`, [MoE layers, experts], and begins anew. Groups split by Split::kExpert only.
  void TakeChoices(std::span<int32_t> counts);

  // Runs all layers for every row of the plan (checked by CheckPlan against plan_limits()).
  // `observer` may be null. Groups split by Split::kTensor give the same plan to all ranks.
  //
  // Of the last layer, rows without logits need no more than their latents: the others go on alone,
  // with the bits that they have among all (not so in groups split by Split::kTensor).
  //
  // parts: 1, or 2 in a group split by Split::kExpert, the same on all its ranks: the plan's slices
  // go through the layers in two parts of about as many rows, each computing while the other's rows
  // travel between the ranks. No bits depend on it. Only where overlaps().
  //
  // most_rows: in a group split by Split::kExpert the rows of the rank with the most in this pass,
  // if all its ranks know it; else 0. On a GPU a pass then waits for nothing before its end:
  // messages have room for so many rows (ExpertExchange's fixed ones), and it is run again, by all,
  // where there was too little for the outputs. No observer then.
  absl::Status Forward(const scheduler::BatchPlan& plan, LayerObserver* observer,
                       LogitRows logit_rows = LogitRows::kSampled, int32_t parts = 1,
                       int32_t most_rows = 0);
  // Whether passes may go in two parts: rows travel beside what computes. Not on GPUs, where both
  // have one queue.
  bool overlaps() const { return queue_ != nullptr; }
  // Passes that were run again so far.
  int64_t passes_run_again() const { return passes_run_again_; }

  // Logits of these rows of the last pass: F32 [rows.size(), vocab_size], valid until the next
  // call. Rows ascend and are of those that Forward was told of; at most max_logit_rows() of them.
  // In a group split by Split::kTensor only rank 0 gets them, the others an absent view.
  absl::StatusOr<kernels::TensorView> Logits(std::span<const int32_t> rows);

  // Passes run from a recording so far.
  uint64_t replays() const { return recorded_ == nullptr ? 0 : recorded_->replays(); }

  int32_t max_logit_rows() const { return options_.max_logit_rows; }
  const PlanLimits& plan_limits() const { return plan_limits_; }
  // Room for LogitsMask: I32 [max_logit_rows, ceil(vocab_size / 32)], in device memory.
  kernels::TensorView logit_mask() const { return activations_.logit_mask; }

 private:
  Decoder(kernels::Device& device, const LoadedModel& model, RankWeights& weights, KvCache& cache,
          const DecoderOptions& options);
  // Rows that go through the layers together.
  struct Part {
    Batch batch;
    Activations a;
    Share own;  // this rank's of its rows
  };
  void SplitPlan(const scheduler::BatchPlan& plan, int32_t parts);
  void ListFinishedRows(const scheduler::BatchPlan& plan, LogitRows logit_rows);
  PassContext ContextOf(const Part& part) const;
  Share OwnRows(int32_t rows) const;
  absl::Status Upload(const Part& part, kernels::PagedBatch& paged);
  bool IsRecordable(const scheduler::BatchPlan& plan, const LayerObserver* observer) const;
  // The one part of the pass, to a shape that is recorded.
  PassShape PadPlan();
  absl::Status RunRecorded(const PassShape& shape, absl::FunctionRef<absl::Status()> launch);
  absl::Status RunPlan(const scheduler::BatchPlan& plan, LayerObserver* observer, int32_t parts);
  absl::Status RunInRoom(const scheduler::BatchPlan& plan, int32_t parts, int32_t most_rows);
  absl::Status CheckGroup() const;
  // What RunInRoom needs on the device: I32, ranks' most_pairs and this one's behind them.
  absl::Status AllocateCounts();
  absl::Status GatherMostPairs();
  absl::Status CopyChoices(const kernels::TensorView& from, const kernels::TensorView& to);
  // Waits for the device.
  absl::Status Await();
  absl::Status RunLayers(std::span<const PassContext> passes, LayerObserver* observer);
  absl::Status TellWritten(int32_t layer, LayerObserver* observer,
                           std::unique_ptr<kernels::Fence>& written);
  bool AllRowsFinish() const;
  bool ExchangesRows(int32_t layer) const;
  absl::Status AttendAndBegin(const PassContext& pass, int32_t layer, ExpertExchange* exchange);
  absl::Status RunExperts(std::span<const PassContext> passes, int32_t layer);
  absl::Status EndLayer(const PassContext& pass, int32_t layer, ExpertExchange* exchange);
  absl::Status FinishLastLayerOf(const scheduler::BatchPlan& plan, int32_t parts);
  absl::Status NormHeadRows(std::span<const int32_t> rows);
  absl::Status SendHeadRows(std::span<const int32_t> rows);

  kernels::Device& device_;
  const LoadedModel& model_;
  RankWeights& rank_weights_;
  const Weights& weights_;  // of rank_weights_
  KvCache& cache_;
  const DecoderOptions options_;
  const PlanLimits plan_limits_;
  kernels::DeviceBuffer scratch_;
  kernels::DeviceBuffer rope_;
  kernels::TensorView cos_;  // F32 [max_positions, rope / 2]
  kernels::TensorView sin_;
  Activations activations_;
  // Groups only: of each part, and where their collectives run when there are two.
  std::array<std::unique_ptr<ExpertExchange>, kMaxParts> exchanges_;
  std::unique_ptr<CallQueue> queue_;
  // Where the device records ops. Not in groups that share passes, whose hosts take part in each
  // layer.
  std::unique_ptr<RecordedPasses> recorded_;
  uint64_t exchange_moves_ = 0;  // of exchanges_[0], as recorded_ knows it
  kernels::DeviceBuffer tables_memory_;
  ExpertTables tables_;
  // Split::kExpert only, in the device's memory.
  kernels::DeviceBuffer counts_;
  kernels::TensorView choices_;         // I32 [MoE layers, experts] since TakeChoices
  kernels::TensorView choices_before_;  // the same before the pass
  kernels::TensorView most_pairs_;      // I32 [ranks + 1]: of the ranks, then of this one
  PairCapacity pair_capacity_{1, 1};
  uint64_t generation_ = 0;    // of the group that pair_capacity_ has seen passes of
  bool in_room_ = false;       // of the pass in progress
  ExpertExchange::Room room_;  // of the pass in progress, if in_room_
  int64_t passes_run_again_ = 0;
  std::array<Part, kMaxParts> parts_;  // of the pass in progress
  std::array<scheduler::BatchPlan, kMaxParts> part_plans_;
  int32_t rows_ = 0;  // of the last pass
  Share own_;         // this rank's of them
  // Rows of the last pass that went through all of the last layer, ascending, and the residual
  // stream that they left: F32 [rows, H]. Not in groups that split rows.
  std::vector<int32_t> finished_rows_;
  kernels::TensorView finished_;
  scheduler::BatchPlan picked_plan_;
};

// Bytes of a decoder's scratch memory and rotary tables.
int64_t DecoderBytes(const ModelConfig& config, const DecoderOptions& options, int32_t page_tokens,
                     int32_t total_pages);

}  // namespace baton::model

#endif  // BATON_MODEL_DECODER_H_
