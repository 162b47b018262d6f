#ifndef BATON_SCHEDULER_EXPERT_PLACEMENT_H_
#define BATON_SCHEDULER_EXPERT_PLACEMENT_H_

// Which replica of which expert stands in which slot of which rank, and the pure function that
// decides it from measured loads. docs/expert-placement.md explains the algorithm with an example.
// Plain values: any thread may call anything here, also in the background while tokens flow.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace baton::scheduler {

// What stays the same while a group lives. Ranks of one node are neighbours: node n holds ranks
// [n * ranks_per_node, (n + 1) * ranks_per_node).
struct ExpertTopology {
  int32_t layers = 0;          // MoE layers, numbered from 0 without the dense ones
  int32_t experts = 0;         // logical experts of each
  int32_t groups = 1;          // the gate's expert groups (n_group)
  int32_t ranks = 0;           // of the worker group
  int32_t slots_per_rank = 0;  // physical experts of a rank in each layer; at most `experts`
  int32_t ranks_per_node = 0;  // divides ranks; 0: all ranks on one node
  // Failure domain of each rank (what dies together: a host, a rack), any numbers. Empty: the node.
  std::vector<int32_t> domains;

  int32_t slots() const { return ranks * slots_per_rank; }
  int32_t nodes() const { return ranks_per_node > 0 ? ranks / ranks_per_node : 1; }
  int32_t node_of(int32_t rank) const { return ranks_per_node > 0 ? rank / ranks_per_node : 0; }
  int32_t domain_of(int32_t rank) const {
    return domains.empty() ? node_of(rank) : domains[static_cast<size_t>(rank)];
  }
  friend bool operator==(const ExpertTopology&, const ExpertTopology&) = default;
};

// INVALID_ARGUMENT that names the value, what is allowed and the fix.
absl::Status CheckTopology(const ExpertTopology& topology);

// Slots per rank that hold `experts` plus at least `redundant` more, at most one slot per expert
// and rank. All arguments >= 0, ranks >= 1.
int32_t SlotsPerRank(int32_t experts, int32_t redundant, int32_t ranks);

// Every slot of every layer holds one logical expert; every expert has a slot in every layer.
// Slot s of a layer (0 <= s < slots()) is on rank s / slots_per_rank; `s` is also the physical
// expert's id in the gate's tables.
class ExpertPlacement {
 public:
  ExpertPlacement() = default;

  // `slot_experts`: [layers, slots]. INVALID_ARGUMENT when the size is wrong, an id is out of
  // range, or a layer lacks an expert.
  static absl::StatusOr<ExpertPlacement> FromSlots(const ExpertTopology& topology,
                                                   std::vector<int32_t> slot_experts);

  // The placement that knows no loads: in each layer the experts in order, then again from the
  // first on. Errors are CheckTopology's.
  static absl::StatusOr<ExpertPlacement> InOrder(const ExpertTopology& topology);

  int32_t layers() const { return layers_; }
  int32_t experts() const { return experts_; }
  int32_t ranks() const { return ranks_; }
  int32_t slots_per_rank() const { return slots_per_rank_; }
  int32_t slots() const { return ranks_ * slots_per_rank_; }
  int32_t rank_of(int32_t slot) const { return slot / slots_per_rank_; }

  // Logical expert of each slot of a layer: [slots].
  std::span<const int32_t> Slots(int32_t layer) const;
  // The slots that hold an expert, ascending; at least one.
  std::span<const int32_t> Replicas(int32_t layer, int32_t expert) const;

  // The same placement with the layers [first, last) of `other`, which has the same shape.
  ExpertPlacement WithLayers(const ExpertPlacement& other, int32_t first, int32_t last) const;

  friend bool operator==(const ExpertPlacement&, const ExpertPlacement&) = default;

 private:
  void Index();

  int32_t layers_ = 0;
  int32_t experts_ = 0;
  int32_t ranks_ = 0;
  int32_t slots_per_rank_ = 0;
  std::vector<int32_t> slot_experts_;   // [layers, slots]
  std::vector<int32_t> replica_slots_;  // [layers, slots], by expert, then slot
  std::vector<int32_t> first_replica_;  // [layers, experts + 1], into a layer of replica_slots_
};

enum class PlacementPolicy : uint8_t {
  // Hierarchical where the shape allows it (experts divide by groups, groups by nodes, all ranks
  // live), else global: the rule of the published algorithm.
  kAuto,
  // Groups are packed onto nodes, and every replica of an expert stays on its group's node, so
  // that group-limited routing crosses few nodes. INVALID_ARGUMENT where the shape forbids it.
  kHierarchical,
  // Replicas anywhere; groups do not matter.
  kGlobal,
};

struct PlacementRequest {
  ExpertTopology topology;
  std::vector<double> loads;  // [layers, experts] tokens, finite and >= 0; a layer of zeros counts
                              // as even load
  PlacementPolicy policy = PlacementPolicy::kAuto;
  // Every expert on at least two ranks, as far as slots allow (hottest first), and on two failure
  // domains, as far as the policy allows: hierarchical keeps replicas inside a node. Slots that
  // this takes from hot experts cost balance.
  bool survive_rank_loss = false;
  // Nullable, of the same topology. The result then keeps experts where they are: it needs no more
  // copies than the placement that would be made without it, and its most loaded rank is, in each
  // layer, at most (1 + keep_slack) times as loaded as that one's.
  std::shared_ptr<const ExpertPlacement> previous;
  double keep_slack = 0.02;  // >= 0
  // Ranks that take part; empty: all. Slots of the others keep what `previous` (then required) says
  // and count for nothing.
  std::vector<bool> live;
};

struct PlacementResult {
  ExpertPlacement placement;
  PlacementPolicy policy = PlacementPolicy::kGlobal;  // the one used: hierarchical or global
  // (layer, expert) pairs whose live replicas share one rank, or one failure domain.
  int32_t on_one_rank = 0;
  int32_t on_one_domain = 0;
  int32_t copies = 0;  // experts that live ranks lack under `previous`; 0 without it
};

// The placement for these loads, an expert's load shared evenly by its replicas. Deterministic,
// ties go to the lowest index. Base: the published algorithm of EPLB (replicate the expert with
// the largest load per replica, pack the heaviest first onto the lightest rank with room), then
// swaps that lower the most loaded rank, so that a layer's most loaded rank is never heavier than
// that algorithm's (unless survive_rank_loss asks for slots). O(layers * slots^2 * steps), steps
// at most 2 * slots and few in practice.
//
// INVALID_ARGUMENT: the topology, a load, `previous` or `live` is not as said above, or there are
// fewer (live) slots than experts.
absl::StatusOr<PlacementResult> PlaceExperts(const PlacementRequest& request);

// The placement that a new group begins with, before any load was measured: PlaceExperts for even
// loads. Every rank finds the same.
absl::StatusOr<ExpertPlacement> StartingPlacement(const ExpertTopology& topology,
                                                  PlacementPolicy policy, bool survive_rank_loss);

// Experts that rank's slots hold under `to` and not under `from`, over all layers; duplicates
// count once.
int32_t CountCopies(const ExpertPlacement& from, const ExpertPlacement& to, int32_t rank);

}  // namespace baton::scheduler

#endif  // BATON_SCHEDULER_EXPERT_PLACEMENT_H_
