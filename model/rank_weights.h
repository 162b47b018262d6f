#ifndef BATON_MODEL_RANK_WEIGHTS_H_
#define BATON_MODEL_RANK_WEIGHTS_H_

// The weights of one rank, where its device reads them: in the checkpoint's mapping, or, where the
// device cannot, copied to its memory. Then a rank has no more than its share (rank_share.h), of
// the routed experts those of its slots (expert_places.h).

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "model/device_weights.h"
#include "model/expert_places.h"
#include "model/loaded_model.h"
#include "model/rank_group.h"
#include "model/weights.h"
#include "scheduler/expert_placement.h"

namespace baton::model {

// Where the experts of a group lie at first: as it says, or in order. Errors are InOrder's.
absl::StatusOr<std::shared_ptr<const scheduler::ExpertPlacement>> FirstPlacement(
    const ModelConfig& config, const RankGroup& group);

class RankWeights {
 public:
  struct Options {
    bool uploads = false;            // to the device's memory
    int32_t spare_experts = 0;       // places beside those of the slots, for copies
    UploadMeter::Progress progress;  // may be empty
  };

  // Bytes that a rank of the group takes in its device's memory when it uploads.
  static absl::StatusOr<int64_t> DeviceBytes(const LoadedModel& model, const RankGroup& group,
                                             int32_t rank, int32_t spare_experts);

  // Of this rank, with the experts that the group's first placement gives it. Model and device
  // outlive it. RESOURCE_EXHAUSTED, with the bytes that are wanted, when the device has no room.
  static absl::StatusOr<std::unique_ptr<RankWeights>> Create(kernels::Device& device,
                                                             const LoadedModel& model,
                                                             const RankGroup& group,
                                                             const Options& options);

  // This rank's share. The routed experts are there for a rank that has no group; else Expert has
  // them.
  const Weights& weights() const { return uploaded_ ? uploaded_->weights() : share_; }

  // For tables: an expert's weights, kept in place as long as `lease`. NOT_FOUND where they are not
  // in the device's memory.
  absl::StatusOr<ExpertWeights> Expert(int32_t moe_layer, int32_t expert,
                                       ExpertPlaces::Lease& lease);
  // Of the same shape, for a table that sends no row there.
  ExpertWeights UnreadExpert(int32_t moe_layer) const;

  // Null where all experts are where the device reads them.
  ExpertPlaces* places() { return places_.get(); }
  // Copies the experts of a rank's slots to places, where there are any.
  absl::Status Bring(kernels::Device& device, const scheduler::ExpertPlacement& placement,
                     int32_t rank, absl::FunctionRef<bool(int64_t bytes)> may_go_on);

  // In the device's memory; 0 where the mapping is used.
  int64_t device_bytes() const;

 private:
  explicit RankWeights(const LoadedModel& model) : model_(model) {}

  const LoadedModel& model_;
  Weights share_;  // in the mapping
  std::unique_ptr<const DeviceWeights> uploaded_;
  std::unique_ptr<ExpertPlaces> places_;
};

}  // namespace baton::model

#endif  // BATON_MODEL_RANK_WEIGHTS_H_
