#include "model/expert_tables.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "scheduler/expert_routing.h"

namespace baton::model {
namespace {

using kernels::DType;
using kernels::TensorView;
using scheduler::ExpertPlacement;

absl::Status CheckShape(const ModelConfig& config, const scheduler::ActiveExperts& active,
                        int32_t ranks) {
  const ExpertPlacement& p = *active.placement;
  const int32_t layers = config.layers - config.dense_layers;
  if (p.layers() != layers || p.experts() != config.routed_experts || p.ranks() != ranks ||
      p.slots_per_rank() < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the expert placement is for ", p.layers(), " MoE layers of ", p.experts(), " experts on ",
        p.ranks(), " ranks with ", p.slots_per_rank(), " slots, expected ", layers, " layers of ",
        config.routed_experts, " experts on ", ranks, " ranks"));
  }
  if (!active.live.empty() && active.live.size() != static_cast<size_t>(ranks)) {
    return absl::InvalidArgumentError(absl::StrCat("the placement's list of live ranks has ",
                                                   active.live.size(), " entries, expected ",
                                                   ranks));
  }
  return absl::OkStatus();
}

}  // namespace

scheduler::ExpertTopology TopologyOf(const ModelConfig& config, int32_t ranks,
                                     int32_t slots_per_rank) {
  return {.layers = config.layers - config.dense_layers,
          .experts = config.routed_experts,
          .groups = config.expert_groups,
          .ranks = ranks,
          .slots_per_rank = slots_per_rank > 0
                                ? slots_per_rank
                                : scheduler::SlotsPerRank(config.routed_experts, 0, ranks)};
}

// The weights of this rank's slots. To a rank that is not live no rows come: its slots may lack
// what the placement says, but ops want weights of the right shape.
absl::Status ExpertTables::AddSlots(RankWeights& weights, int32_t moe_layer, int32_t rank) {
  Layer& layer = layers_.emplace_back();
  const bool live = active_.live.empty() || active_.live[static_cast<size_t>(rank)];
  const size_t slots = static_cast<size_t>(active_.placement->slots_per_rank());
  for (const int32_t expert :
       active_.placement->Slots(moe_layer).subspan(static_cast<size_t>(rank) * slots, slots)) {
    absl::StatusOr<ExpertWeights> found = weights.Expert(moe_layer, expert, lease_);
    if (absl::IsNotFound(found.status())) {
      if (live) {
        return absl::FailedPreconditionError(
            absl::StrCat(found.status().message(), ", and placement ", active_.version,
                         " sends rows to it on rank ", rank, "; it must be copied there first"));
      }
      found = weights.UnreadExpert(moe_layer);
    }
    BATON_RETURN_IF_ERROR(found.status());
    layer.gate.push_back(found->gate);
    layer.up.push_back(found->up);
    layer.down.push_back(found->down);
  }
  return absl::OkStatus();
}

absl::StatusOr<ExpertTables> ExpertTables::Create(kernels::Device& device,
                                                  const ModelConfig& config, RankWeights& weights,
                                                  const scheduler::ActiveExperts& active,
                                                  int32_t ranks, int32_t rank,
                                                  kernels::DeviceBuffer& memory) {
  BATON_RETURN_IF_ERROR(CheckShape(config, active, ranks));
  const ExpertPlacement& placement = *active.placement;
  ExpertTables result;
  result.active_ = active;
  std::vector<int32_t> tables;  // of each layer: replicas, then counts
  std::vector<int64_t> widths;
  for (int32_t i = 0; i < placement.layers(); ++i) {
    BATON_ASSIGN_OR_RETURN(const scheduler::ReplicaTable table,
                           scheduler::MakeReplicaTable(placement, i, active.live));
    widths.push_back(table.max_replicas);
    tables.insert(tables.end(), table.replicas.begin(), table.replicas.end());
    tables.insert(tables.end(), table.counts.begin(), table.counts.end());
  }
  const int64_t experts = placement.experts();
  for (int32_t i = 0; i < placement.layers(); ++i) {
    BATON_RETURN_IF_ERROR(result.AddSlots(weights, i, rank));
  }
  const size_t bytes = tables.size() * sizeof(int32_t);
  if (memory.bytes() < bytes) {
    const int64_t room = placement.layers() * experts * (ranks + 1);
    BATON_ASSIGN_OR_RETURN(
        memory, device.Allocate(std::max(bytes, static_cast<size_t>(room) * sizeof(int32_t))));
  }
  int32_t* at = static_cast<int32_t*>(memory.data());
  BATON_RETURN_IF_ERROR(device.EnqueueCopyToDevice(at, tables.data(), bytes));
  for (int32_t i = 0; i < placement.layers(); ++i) {
    const int64_t width = widths[static_cast<size_t>(i)];
    Layer& layer = result.layers_[static_cast<size_t>(i)];
    layer.replicas = TensorView::Contiguous(at, DType::kI32, {experts, width});
    at += experts * width;
    layer.replica_count = TensorView::Contiguous(at, DType::kI32, {experts});
    at += experts;
  }
  return result;
}

}  // namespace baton::model
