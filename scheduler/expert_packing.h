#ifndef BATON_SCHEDULER_EXPERT_PACKING_H_
#define BATON_SCHEDULER_EXPERT_PACKING_H_

// The arithmetic under scheduler/expert_placement: one layer's experts (or one node's share of
// them) into the slots of ranks. Arguments were checked by the caller; everything is pure and
// breaks ties by index.

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace baton::scheduler {

// experts <= ranks * slots_per_rank, slots_per_rank <= experts.
struct PackProblem {
  std::vector<double> loads;  // of each expert; finite, >= 0
  int32_t ranks = 0;
  int32_t slots_per_rank = 0;
  std::vector<int32_t> domains;  // of each rank, in [0, ranks)
  bool survive = false;          // two ranks and two domains for every expert, where possible

  int32_t experts() const { return static_cast<int32_t>(loads.size()); }
  int32_t slots() const { return ranks * slots_per_rank; }
};

// Expert of each slot: [ranks * slots_per_rank].
using PackedSlots = std::vector<int32_t>;

// Items into `packs` of equal item counts: heaviest first, each to the lightest pack that has room.
// Returns the items pack by pack, each pack's in the order in which they came. packs divides
// loads.size(). One item per pack: item i goes to pack i.
std::vector<int32_t> BalancedPacking(std::span<const double> loads, int32_t packs);

// A packing from scratch.
PackedSlots PackExperts(const PackProblem& problem);

// `previous`, changed slot by slot until its most loaded rank carries at most `target`; nothing
// when that takes more than about max_copies copies, or `previous` lacks an expert.
std::optional<PackedSlots> AdaptPacking(const PackProblem& problem, const PackedSlots& previous,
                                        double target, int32_t max_copies);

// Load of the most loaded rank.
double MaxRankLoad(const PackProblem& problem, const PackedSlots& slots);

// 0 unless problem.survive: 2 for each expert on one rank, 1 for each on one domain (where there
// are more).
int32_t PackPenalty(const PackProblem& problem, const PackedSlots& slots);

// `fresh` with whole packs exchanged inside each class (class_of: [packs]), so that many experts
// are in the pack where `previous` has them.
PackedSlots ExchangePacks(const PackedSlots& fresh, const PackedSlots& previous,
                          std::span<const int32_t> class_of, int32_t per_pack);

// `fresh` with slots exchanged inside each rank: what the rank already holds keeps its slot.
PackedSlots KeepSlots(const PackedSlots& fresh, const PackedSlots& previous,
                      int32_t slots_per_rank);

// Distinct experts that some rank holds in `to` and not in `from`, summed over ranks.
int32_t PackingCopies(const PackedSlots& from, const PackedSlots& to, int32_t slots_per_rank);

}  // namespace baton::scheduler

#endif  // BATON_SCHEDULER_EXPERT_PACKING_H_
