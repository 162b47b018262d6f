#ifndef BATON_MODEL_DECODER_H_
#define BATON_MODEL_DECODER_H_

// The forward pass: token ids in, logits out, latents into the pages. Owns the scratch memory of a
// pass and the rotary tables; borrows device, model, pages and the group's collectives, which must
// outlive it. One thread. In a group, all ranks make the same calls in the same order; a
// collective's error means that the group is broken.

#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "model/activations.h"
#include "model/batch.h"
#include "model/expert_exchange.h"
#include "model/expert_tables.h"
#include "model/kv_cache.h"
#include "model/loaded_model.h"
#include "model/rank_group.h"
#include "model/runner.h"
#include "scheduler/types.h"

namespace baton::model {

struct DecoderOptions {
  int32_t max_rows = 512;
  int32_t max_logit_rows = 64;
  kernels::DType act = kernels::DType::kBF16;  // or kF32
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
  static absl::StatusOr<std::unique_ptr<Decoder>> Create(kernels::Device& device,
                                                         const LoadedModel& model, KvCache& cache,
                                                         const DecoderOptions& options);

  // Where the experts lie from the next pass on; in order until the first call. The same on all
  // ranks. Errors as ExpertTables::Create; nothing changes then. Groups only.
  absl::Status InstallExperts(const scheduler::ActiveExperts& active);
  uint64_t experts_version() const { return tables_.active().version; }

  // Runs all layers for every row of the plan (checked by CheckPlan against plan_limits()).
  // `observer` may be null. Groups split by Split::kTensor give the same plan to all ranks.
  //
  // Of the last layer, rows without logits need no more than their latents: the others go on alone,
  // with the bits that they have among all (not so in groups split by Split::kTensor).
  absl::Status Forward(const scheduler::BatchPlan& plan, LayerObserver* observer,
                       LogitRows logit_rows = LogitRows::kSampled);

  // Logits of these rows of the last pass: F32 [rows.size(), vocab_size], valid until the next
  // call. Rows ascend and are of those that Forward was told of; at most max_logit_rows() of them.
  // In a group split by Split::kTensor only rank 0 gets them, the others an absent view.
  absl::StatusOr<kernels::TensorView> Logits(std::span<const int32_t> rows);

  int32_t max_logit_rows() const { return options_.max_logit_rows; }
  const PlanLimits& plan_limits() const { return plan_limits_; }
  // Room for LogitsMask: I32 [max_logit_rows, ceil(vocab_size / 32)], in device memory.
  kernels::TensorView logit_mask() const { return activations_.logit_mask; }

 private:
  Decoder(kernels::Device& device, const LoadedModel& model, KvCache& cache,
          const DecoderOptions& options);
  absl::Status Upload(const Batch& batch, kernels::PagedBatch& paged);
  absl::Status RunLayers(const PassContext& pass, LayerObserver* observer);
  bool AllRowsFinish() const;
  absl::Status FinishLayer(const PassContext& pass, int32_t layer);
  absl::Status FinishLastLayerOf(const PassContext& pass, const scheduler::BatchPlan& plan);
  absl::Status NormHeadRows(std::span<const int32_t> rows);
  absl::Status SendHeadRows(std::span<const int32_t> rows);

  kernels::Device& device_;
  const LoadedModel& model_;
  KvCache& cache_;
  const DecoderOptions options_;
  const PlanLimits plan_limits_;
  kernels::DeviceBuffer scratch_;
  kernels::DeviceBuffer rope_;
  kernels::TensorView cos_;  // F32 [max_positions, rope / 2]
  kernels::TensorView sin_;
  Activations activations_;
  std::unique_ptr<ExpertExchange> exchange_;  // groups only
  ExpertTables tables_;                       // groups only
  Batch batch_;
  Share own_;  // this rank's rows of the last pass
  // Rows of the last pass that went through all of the last layer, ascending, and the residual
  // stream that they left: F32 [rows, H]. Not in groups that split rows.
  std::vector<int32_t> finished_rows_;
  kernels::TensorView finished_;
  scheduler::BatchPlan picked_plan_;
  Batch picked_batch_;
};

// Bytes of a decoder's scratch memory and rotary tables.
int64_t DecoderBytes(const ModelConfig& config, const DecoderOptions& options, int32_t page_tokens,
                     int32_t total_pages);

}  // namespace baton::model

#endif  // BATON_MODEL_DECODER_H_
