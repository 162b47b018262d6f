#ifndef BATON_SCHEDULER_EXPERT_ROUTING_H_
#define BATON_SCHEDULER_EXPERT_ROUTING_H_

// Which replica serves which token, and what a placement still covers while ranks are masked. A
// token's bits do not depend on the replica (every replica has the same weights, and results are
// added in expert order), so the choice is free: cheap for decode, balanced for prefill. Pure.
//
// `live` has one entry per rank, or none for all.

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "base/ids.h"
#include "scheduler/expert_placement.h"

namespace baton::scheduler {

// (layer, expert) pairs without a live replica: 0 is what a group needs to go on.
int32_t CountUncovered(const ExpertPlacement& placement, const std::vector<bool>& live);
// (layer, expert) pairs with live replicas on one rank alone: they are lost with that rank.
int32_t CountOnOneRank(const ExpertPlacement& placement, const std::vector<bool>& live);

// The gate's tables of one layer (kernels/ops.h, MoeGate).
struct ReplicaTable {
  int32_t max_replicas = 0;
  std::vector<int32_t> replicas;  // [experts, max_replicas] physical ids; unused entries repeat
  std::vector<int32_t> counts;    // [experts], 1..max_replicas
};
// Live replicas alone, each expert's list turned by its id, so that one value of the row hash does
// not prefer the low ranks for every expert. FAILED_PRECONDITION when an expert has no live
// replica.
absl::StatusOr<ReplicaTable> MakeReplicaTable(const ExpertPlacement& placement, int32_t layer,
                                              const std::vector<bool>& live);

// The row hash of a token: spreads requests and positions evenly, and knows nothing of the batch.
// The gate takes replicas[expert][hash % count].
uint32_t RowHash(RequestId request, int32_t position);

// Splits each expert's tokens over its live replicas so that the most loaded rank is as light as
// any split can make it. tokens: [experts], >= 0. Returns the tokens of each slot: [slots]. An
// expert with tokens has a live replica. O(slots * replicas) for each of few rounds.
std::vector<int32_t> SplitTokens(const ExpertPlacement& placement, int32_t layer,
                                 const std::vector<bool>& live, std::span<const int32_t> tokens);

// Carries a split out: experts [n] are the choices of all tokens in order, slot_tokens [slots] is
// SplitTokens of their counts; `physical` [n] gets a slot for each choice. A slot's tokens are
// consecutive among its expert's.
void AssignSlots(const ExpertPlacement& placement, int32_t layer,
                 std::span<const int32_t> slot_tokens, std::span<const int32_t> experts,
                 std::span<int32_t> physical);

}  // namespace baton::scheduler

#endif  // BATON_SCHEDULER_EXPERT_ROUTING_H_
