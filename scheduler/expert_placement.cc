#include "scheduler/expert_placement.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "scheduler/expert_packing.h"

namespace baton::scheduler {
namespace {

constexpr int32_t kMaxLayers = 1024;
constexpr int32_t kMaxExperts = 4096;
constexpr int32_t kMaxRanks = 4096;

absl::Status CheckRange(const char* name, int64_t value, int64_t low, int64_t high,
                        const char* fix) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("expert placement: ", name, " is ", value,
                                                 ", allowed are ", low, " to ", high, ": ", fix));
}

}  // namespace

absl::Status CheckTopology(const ExpertTopology& t) {
  BATON_RETURN_IF_ERROR(
      CheckRange("layers", t.layers, 1, kMaxLayers, "count the model's MoE layers"));
  BATON_RETURN_IF_ERROR(
      CheckRange("experts", t.experts, 1, kMaxExperts, "count the routed experts of a layer"));
  BATON_RETURN_IF_ERROR(CheckRange("groups", t.groups, 1, t.experts, "take the model's n_group"));
  BATON_RETURN_IF_ERROR(CheckRange("ranks", t.ranks, 1, kMaxRanks, "count the group's ranks"));
  BATON_RETURN_IF_ERROR(CheckRange("slots_per_rank", t.slots_per_rank, 1, t.experts,
                                   "a rank needs no more than one slot for each expert"));
  if (t.slots() < t.experts) {
    return absl::InvalidArgumentError(absl::StrCat(
        "expert placement: ", t.ranks, " ranks x ", t.slots_per_rank, " slots = ", t.slots(),
        " slots, expected at least one for each of ", t.experts, " experts: use at least ",
        (t.experts + t.ranks - 1) / t.ranks, " slots per rank"));
  }
  BATON_RETURN_IF_ERROR(CheckRange("ranks_per_node", t.ranks_per_node, 0, t.ranks,
                                   "count the ranks of a node, or give 0 for one node"));
  if (t.ranks_per_node > 0 && t.ranks % t.ranks_per_node != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("expert placement: ", t.ranks, " ranks do not divide into nodes of ",
                     t.ranks_per_node, ": use full nodes, or ranks_per_node 0 for one node"));
  }
  if (!t.domains.empty() && static_cast<int32_t>(t.domains.size()) != t.ranks) {
    return absl::InvalidArgumentError(absl::StrCat("expert placement: ", t.domains.size(),
                                                   " failure domains given, expected ", t.ranks,
                                                   ": one for each rank, or none"));
  }
  return absl::OkStatus();
}

int32_t SlotsPerRank(int32_t experts, int32_t redundant, int32_t ranks) {
  BATON_CHECK(experts >= 0 && redundant >= 0 && ranks >= 1);
  const int64_t wanted = (static_cast<int64_t>(experts) + redundant + ranks - 1) / ranks;
  return static_cast<int32_t>(std::min<int64_t>(wanted, experts));
}

// --- ExpertPlacement ------------------------------------------------------------------------

absl::StatusOr<ExpertPlacement> ExpertPlacement::InOrder(const ExpertTopology& topology) {
  BATON_RETURN_IF_ERROR(CheckTopology(topology));
  std::vector<int32_t> slot_experts;
  for (int32_t layer = 0; layer < topology.layers; ++layer) {
    for (int32_t slot = 0; slot < topology.slots(); ++slot) {
      slot_experts.push_back(slot % topology.experts);
    }
  }
  return FromSlots(topology, std::move(slot_experts));
}

absl::StatusOr<ExpertPlacement> ExpertPlacement::FromSlots(const ExpertTopology& topology,
                                                           std::vector<int32_t> slot_experts) {
  BATON_RETURN_IF_ERROR(CheckTopology(topology));
  const size_t expected = static_cast<size_t>(topology.layers) * topology.slots();
  if (slot_experts.size() != expected) {
    return absl::InvalidArgumentError(absl::StrCat(
        "expert placement: ", slot_experts.size(), " slots given, expected ", topology.layers,
        " layers x ", topology.slots(), " slots = ", expected, ": give the expert of each"));
  }
  for (size_t i = 0; i < expected; ++i) {
    if (slot_experts[i] >= 0 && slot_experts[i] < topology.experts) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("expert placement: slot ", i % topology.slots(), " of layer ",
                     i / topology.slots(), " has expert ", slot_experts[i], ", allowed are 0 to ",
                     topology.experts - 1, ": name the logical expert"));
  }
  ExpertPlacement placement;
  placement.layers_ = topology.layers;
  placement.experts_ = topology.experts;
  placement.ranks_ = topology.ranks;
  placement.slots_per_rank_ = topology.slots_per_rank;
  placement.slot_experts_ = std::move(slot_experts);
  placement.Index();
  for (int32_t l = 0; l < topology.layers; ++l) {
    for (int32_t e = 0; e < topology.experts; ++e) {
      if (!placement.Replicas(l, e).empty()) continue;
      return absl::InvalidArgumentError(absl::StrCat("expert placement: expert ", e,
                                                     " has no slot in layer ", l,
                                                     ": give every expert at least one"));
    }
  }
  return placement;
}

void ExpertPlacement::Index() {
  replica_slots_.assign(slot_experts_.size(), 0);
  first_replica_.assign(static_cast<size_t>(layers_) * (experts_ + 1), 0);
  for (int32_t l = 0; l < layers_; ++l) {
    int32_t* const first = &first_replica_[static_cast<size_t>(l) * (experts_ + 1)];
    int32_t* const replicas = &replica_slots_[static_cast<size_t>(l) * slots()];
    const auto layer = Slots(l);
    for (int32_t expert : layer) ++first[expert + 1];
    std::partial_sum(first, first + experts_ + 1, first);
    std::vector<int32_t> next(first, first + experts_);
    for (int32_t s = 0; s < slots(); ++s) replicas[next[layer[s]]++] = s;
  }
}

std::span<const int32_t> ExpertPlacement::Slots(int32_t layer) const {
  BATON_CHECK(layer >= 0 && layer < layers_);
  return std::span<const int32_t>(slot_experts_)
      .subspan(static_cast<size_t>(layer) * slots(), slots());
}

std::span<const int32_t> ExpertPlacement::Replicas(int32_t layer, int32_t expert) const {
  BATON_CHECK(layer >= 0 && layer < layers_ && expert >= 0 && expert < experts_);
  const int32_t* const first =
      &first_replica_[static_cast<size_t>(layer) * (experts_ + 1) + expert];
  return std::span<const int32_t>(replica_slots_)
      .subspan(static_cast<size_t>(layer) * slots() + first[0], first[1] - first[0]);
}

ExpertPlacement ExpertPlacement::WithLayers(const ExpertPlacement& other, int32_t first,
                                            int32_t last) const {
  BATON_CHECK(other.layers_ == layers_ && other.experts_ == experts_ && other.ranks_ == ranks_ &&
              other.slots_per_rank_ == slots_per_rank_);
  BATON_CHECK(0 <= first && first <= last && last <= layers_);
  ExpertPlacement mixed = *this;
  const ptrdiff_t from = static_cast<ptrdiff_t>(first) * slots();
  const ptrdiff_t to = static_cast<ptrdiff_t>(last) * slots();
  std::copy(other.slot_experts_.begin() + from, other.slot_experts_.begin() + to,
            mixed.slot_experts_.begin() + from);
  mixed.Index();
  return mixed;
}

int32_t CountCopies(const ExpertPlacement& from, const ExpertPlacement& to, int32_t rank) {
  int32_t copies = 0;
  const int32_t per_rank = to.slots_per_rank();
  for (int32_t l = 0; l < to.layers(); ++l) {
    const auto old_slots = from.Slots(l).subspan(rank * per_rank, per_rank);
    const auto new_slots = to.Slots(l).subspan(rank * per_rank, per_rank);
    copies += PackingCopies(PackedSlots(old_slots.begin(), old_slots.end()),
                            PackedSlots(new_slots.begin(), new_slots.end()), per_rank);
  }
  return copies;
}

}  // namespace baton::scheduler
