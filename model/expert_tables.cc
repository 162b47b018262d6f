#include "model/expert_tables.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"

namespace baton::model {
namespace {

using kernels::DType;
using kernels::TensorView;
using scheduler::ExpertPlacement;

bool IsLive(const InstalledPlacement& installed, int32_t rank) {
  return installed.live.empty() || installed.live[static_cast<size_t>(rank)];
}

absl::Status CheckShape(const ModelConfig& config, const InstalledPlacement& installed,
                        int32_t ranks) {
  const ExpertPlacement& p = installed.placement;
  const int32_t layers = config.layers - config.dense_layers;
  if (p.layers() != layers || p.experts() != config.routed_experts || p.ranks() != ranks ||
      p.slots_per_rank() < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the expert placement is for ", p.layers(), " MoE layers of ", p.experts(), " experts on ",
        p.ranks(), " ranks with ", p.slots_per_rank(), " slots, expected ", layers, " layers of ",
        config.routed_experts, " experts on ", ranks, " ranks"));
  }
  if (!installed.live.empty() && installed.live.size() != static_cast<size_t>(ranks)) {
    return absl::InvalidArgumentError(absl::StrCat("the placement's list of live ranks has ",
                                                   installed.live.size(), " entries, expected ",
                                                   ranks));
  }
  return absl::OkStatus();
}

// Slots of an expert on live ranks, ascending.
std::vector<int32_t> LiveReplicas(const InstalledPlacement& installed, int32_t layer,
                                  int32_t expert) {
  std::vector<int32_t> slots;
  for (const int32_t slot : installed.placement.Replicas(layer, expert)) {
    if (IsLive(installed, installed.placement.rank_of(slot))) slots.push_back(slot);
  }
  return slots;
}

// [E, width] slots, then [E] counts, appended to `tables`. Returns the width.
absl::StatusOr<int64_t> AppendTables(const InstalledPlacement& installed, int32_t layer,
                                     std::vector<int32_t>& tables) {
  std::vector<std::vector<int32_t>> replicas;
  size_t width = 0;
  for (int32_t e = 0; e < installed.placement.experts(); ++e) {
    replicas.push_back(LiveReplicas(installed, layer, e));
    if (replicas.back().empty()) {
      return absl::FailedPreconditionError(
          absl::StrCat("expert ", e, " of MoE layer ", layer, " has no replica on a live rank"));
    }
    width = std::max(width, replicas.back().size());
  }
  for (const std::vector<int32_t>& slots : replicas) {
    tables.insert(tables.end(), slots.begin(), slots.end());
    tables.resize(tables.size() + width - slots.size(), 0);
  }
  for (const std::vector<int32_t>& slots : replicas) {
    tables.push_back(static_cast<int32_t>(slots.size()));
  }
  return static_cast<int64_t>(width);
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

ExpertPlacement PlaceInOrder(const scheduler::ExpertTopology& topology) {
  std::vector<int32_t> slots;
  for (int32_t layer = 0; layer < topology.layers; ++layer) {
    for (int32_t slot = 0; slot < topology.slots(); ++slot) {
      slots.push_back(slot % topology.experts);
    }
  }
  absl::StatusOr<ExpertPlacement> placement = ExpertPlacement::FromSlots(topology, slots);
  BATON_CHECK_MSG(placement.ok(), placement.status().ToString());
  return *std::move(placement);
}

absl::StatusOr<ExpertTables> ExpertTables::Create(kernels::Device& device,
                                                  const ModelConfig& config, const Weights& weights,
                                                  const InstalledPlacement& installed,
                                                  int32_t ranks, int32_t rank) {
  BATON_RETURN_IF_ERROR(CheckShape(config, installed, ranks));
  const ExpertPlacement& placement = installed.placement;
  ExpertTables result;
  result.version_ = installed.version;
  result.slots_per_rank_ = placement.slots_per_rank();
  std::vector<int32_t> tables;
  std::vector<int64_t> widths;
  for (int32_t i = 0; i < placement.layers(); ++i) {
    BATON_ASSIGN_OR_RETURN(const int64_t width, AppendTables(installed, i, tables));
    widths.push_back(width);
  }
  BATON_ASSIGN_OR_RETURN(result.tables_, device.Allocate(tables.size() * sizeof(int32_t)));
  int32_t* at = static_cast<int32_t*>(result.tables_.data());
  BATON_RETURN_IF_ERROR(device.CopyToDevice(at, tables.data(), tables.size() * sizeof(int32_t)));

  const int64_t experts = placement.experts();
  for (int32_t i = 0; i < placement.layers(); ++i) {
    const int64_t width = widths[static_cast<size_t>(i)];
    Layer layer;
    layer.replicas = TensorView::Contiguous(at, DType::kI32, {experts, width});
    at += experts * width;
    layer.replica_count = TensorView::Contiguous(at, DType::kI32, {experts});
    at += experts;
    const MoeWeights& moe = weights.layers[static_cast<size_t>(config.dense_layers + i)].moe;
    for (const int32_t expert :
         placement.Slots(i).subspan(static_cast<size_t>(rank * placement.slots_per_rank()),
                                    static_cast<size_t>(placement.slots_per_rank()))) {
      layer.gate.push_back(moe.expert_gate[static_cast<size_t>(expert)]);
      layer.up.push_back(moe.expert_up[static_cast<size_t>(expert)]);
      layer.down.push_back(moe.expert_down[static_cast<size_t>(expert)]);
    }
    result.layers_.push_back(std::move(layer));
  }
  return result;
}

}  // namespace baton::model
