#include "model/expert_tables.h"

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

absl::StatusOr<ExpertTables> ExpertTables::Create(kernels::Device& device,
                                                  const ModelConfig& config, const Weights& weights,
                                                  const scheduler::ActiveExperts& active,
                                                  int32_t ranks, int32_t rank) {
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
  BATON_ASSIGN_OR_RETURN(result.tables_, device.Allocate(tables.size() * sizeof(int32_t)));
  int32_t* at = static_cast<int32_t*>(result.tables_.data());
  BATON_RETURN_IF_ERROR(device.CopyToDevice(at, tables.data(), tables.size() * sizeof(int32_t)));

  const int64_t experts = placement.experts();
  const size_t slots = static_cast<size_t>(placement.slots_per_rank());
  for (int32_t i = 0; i < placement.layers(); ++i) {
    const int64_t width = widths[static_cast<size_t>(i)];
    Layer layer;
    layer.replicas = TensorView::Contiguous(at, DType::kI32, {experts, width});
    at += experts * width;
    layer.replica_count = TensorView::Contiguous(at, DType::kI32, {experts});
    at += experts;
    const MoeWeights& moe =
        weights.layers[static_cast<size_t>(config.dense_layers) + static_cast<size_t>(i)].moe;
    for (const int32_t expert :
         placement.Slots(i).subspan(static_cast<size_t>(rank) * slots, slots)) {
      layer.gate.push_back(moe.expert_gate[static_cast<size_t>(expert)]);
      layer.up.push_back(moe.expert_up[static_cast<size_t>(expert)]);
      layer.down.push_back(moe.expert_down[static_cast<size_t>(expert)]);
    }
    result.layers_.push_back(std::move(layer));
  }
  return result;
}

}  // namespace baton::model
