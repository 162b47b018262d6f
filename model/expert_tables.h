#ifndef BATON_MODEL_EXPERT_TABLES_H_
#define BATON_MODEL_EXPERT_TABLES_H_

// An expert placement as ops take it, for one rank of a group: for each MoE layer the slots of
// every expert, and the weights of the rank's own slots.

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/ops.h"
#include "model/config.h"
#include "model/expert_places.h"
#include "model/rank_weights.h"
#include "scheduler/expert_placement.h"
#include "scheduler/expert_switch.h"

namespace baton::model {

// The experts of the model in a group of `ranks` with `slots_per_rank` slots in each layer; 0: as
// few as hold them.
scheduler::ExpertTopology TopologyOf(const ModelConfig& config, int32_t ranks,
                                     int32_t slots_per_rank = 0);

class ExpertTables {
 public:
  struct Layer {
    kernels::TensorView replicas;       // I32 [E, most replicas of an expert]: slots on live ranks
    kernels::TensorView replica_count;  // I32 [E]
    std::vector<kernels::Weight> gate;  // one for each slot of this rank
    std::vector<kernels::Weight> up;
    std::vector<kernels::Weight> down;
  };

  ExpertTables() = default;
  // Borrows the weights, and keeps the experts of the rank's slots in their places as long as it
  // lives. The tables lie in `memory`, behind the ops called so far: those of before go then. It is
  // replaced where it is too small, which waits for the whole device; the first one has room for as
  // many replicas as there are ranks. INVALID_ARGUMENT when the placement's shape is not the
  // model's or the group's, FAILED_PRECONDITION when an expert has no replica on a live rank, or
  // when this one is live and the experts of its slots are not in its device's memory.
  static absl::StatusOr<ExpertTables> Create(kernels::Device& device, const ModelConfig& config,
                                             RankWeights& weights,
                                             const scheduler::ActiveExperts& active, int32_t ranks,
                                             int32_t rank, kernels::DeviceBuffer& memory);

  const scheduler::ActiveExperts& active() const { return active_; }
  // MoE layer i, counted without the dense layers.
  const Layer& layer(int32_t i) const { return layers_[static_cast<size_t>(i)]; }

 private:
  absl::Status AddSlots(RankWeights& weights, int32_t moe_layer, int32_t rank);

  scheduler::ActiveExperts active_;
  std::vector<Layer> layers_;
  ExpertPlaces::Lease lease_;  // of layers_' weights
};

}  // namespace baton::model

#endif  // BATON_MODEL_EXPERT_TABLES_H_
