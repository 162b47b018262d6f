#ifndef BATON_MODEL_DECODER_H_
#define BATON_MODEL_DECODER_H_

// The forward pass: token ids in, logits out, latents into the pages. Owns the scratch memory of a
// pass and the rotary tables; borrows device, model and pages, which must outlive it. One thread.

#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "model/activations.h"
#include "model/batch.h"
#include "model/kv_cache.h"
#include "model/loaded_model.h"
#include "model/runner.h"
#include "scheduler/types.h"

namespace baton::model {

struct DecoderOptions {
  int32_t max_rows = 512;
  int32_t max_logit_rows = 64;
  kernels::DType act = kernels::DType::kBF16;  // or kF32
};

struct PassContext;  // model/mla.h

class Decoder {
 public:
  static absl::StatusOr<std::unique_ptr<Decoder>> Create(kernels::Device& device,
                                                         const LoadedModel& model, KvCache& cache,
                                                         const DecoderOptions& options);

  // Runs all layers for every row of the plan (checked by CheckPlan against plan_limits()).
  // `observer` may be null.
  absl::Status Forward(const scheduler::BatchPlan& plan, LayerObserver* observer);

  // Logits of these rows of the last pass: F32 [rows.size(), vocab_size], valid until the next
  // call. Rows ascend; at most max_logit_rows() of them.
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
  Batch batch_;
};

// Bytes of a decoder's scratch memory and rotary tables.
int64_t DecoderBytes(const ModelConfig& config, const DecoderOptions& options, int32_t page_tokens,
                     int32_t total_pages);

}  // namespace baton::model

#endif  // BATON_MODEL_DECODER_H_
