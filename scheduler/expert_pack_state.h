#ifndef BATON_SCHEDULER_EXPERT_PACK_STATE_H_
#define BATON_SCHEDULER_EXPERT_PACK_STATE_H_

// A packing that is being improved: slots, rank loads and who is protected, kept consistent while
// experts change slots. Used by scheduler/expert_packing alone.

#include <cstdint>
#include <vector>

#include "scheduler/expert_packing.h"

namespace baton::scheduler {

class PackState {
 public:
  // `problem` must outlive the state. Every expert stands in some slot.
  PackState(const PackProblem& problem, PackedSlots slots);

  const PackedSlots& slots() const { return slots_; }
  double MaxLoad() const;
  int32_t penalty() const { return penalty_; }  // see PackPenalty
  bool HasDuplicates() const;                   // some rank holds an expert twice

  // Exchanges slots, or gives those of experts with more than they need to others, until no such
  // change protects more experts.
  void Protect();
  // Exchanges slots between the most loaded rank and others while that lowers its load, without
  // loss of protection and without new duplicates.
  void Balance();
  // As Balance, but also gives slots of one expert to another; stops when MaxLoad() <= target, no
  // change helps or the changes would take more than max_copies copies.
  void Adapt(double target, int32_t max_copies);

 private:
  // One change: slots `slot` and `other` exchange their experts, or, when other is -1, `slot` gets
  // `expert`.
  struct Change {
    int32_t slot = -1;
    int32_t other = -1;
    int32_t expert = -1;
    double max_load = 0;  // of the ranks that it affects, afterwards
  };

  int32_t RankOf(int32_t slot) const { return slot / problem_.slots_per_rank; }
  int32_t On(int32_t expert, int32_t rank) const { return on_rank_[expert * ranks_ + rank]; }
  int32_t InDomain(int32_t expert, int32_t domain) const {
    return in_domain_[expert * ranks_ + domain];
  }
  double PerReplica(int32_t expert) const { return problem_.loads[expert] / counts_[expert]; }
  int32_t HeaviestRank() const;  // the lowest of them

  void Count(int32_t expert, int32_t rank, int32_t change);
  void Sum(int32_t rank);
  int32_t Penalty(int32_t ranks, int32_t domains) const;
  // Penalty of an expert of which one replica leaves rank `from` and one comes to rank `to`; -1
  // stands for nowhere.
  int32_t PenaltyAfter(int32_t expert, int32_t from, int32_t to) const;
  // What exchanging the two slots adds to the penalty.
  int32_t SwapPenalty(int32_t a, int32_t b) const;
  // Both experts are new on the other's rank.
  bool SpreadsDuplicates(int32_t a, int32_t b) const;
  void Swap(int32_t a, int32_t b);
  void Replace(int32_t slot, int32_t expert);
  void Apply(const Change& change);

  Change BestSwap(int32_t heaviest, double limit) const;
  Change BestReplacement(int32_t heaviest, double limit) const;
  // The most loaded affected rank once `slot` holds `expert`, or `limit` where that is reached.
  double LoadAfter(int32_t slot, int32_t expert, double limit) const;
  bool ProtectOne(int32_t expert);
  Change BestProtectingSwap(int32_t expert) const;
  Change BestProtectingReplacement(int32_t expert) const;

  const PackProblem& problem_;
  const int32_t ranks_;
  int32_t domain_count_ = 0;
  PackedSlots slots_;
  std::vector<int32_t> counts_;      // replicas of each expert
  std::vector<int32_t> on_rank_;     // [experts, ranks] replicas
  std::vector<int32_t> in_domain_;   // [experts, ranks] replicas; domains are numbered below ranks
  std::vector<int32_t> ranks_of_;    // ranks that hold each expert
  std::vector<int32_t> domains_of_;  // domains that hold each expert
  std::vector<double> load_;         // of each rank
  int32_t penalty_ = 0;
};

}  // namespace baton::scheduler

#endif  // BATON_SCHEDULER_EXPERT_PACK_STATE_H_
