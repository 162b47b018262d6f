#ifndef BATON_DECODE_WORKER_EXPERT_STANDING_H_
#define BATON_DECODE_WORKER_EXPERT_STANDING_H_

// What the ranks of an expert-parallel group tell each other when they have found each other: what
// they hold, and which groups they have been in.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "scheduler/expert_switch.h"
#include "scheduler/group_quorum.h"

namespace baton::decode_worker {

struct Standing {
  scheduler::SwitchState state;
  uint64_t step = 0;
  bool has_slots = false;          // false: a rank that has just come; the rest says nothing then
  scheduler::ViewHistory history;  // at most kMaxEntered views entered
};

inline constexpr size_t kMaxEntered = 8;

// Of every rank of a group of `ranks`.
size_t StandingBytes(int32_t ranks);
std::vector<std::byte> EncodeStanding(const Standing& standing, int32_t ranks);
// INTERNAL for bytes that are none.
absl::StatusOr<Standing> DecodeStanding(std::span<const std::byte> bytes, int32_t ranks);

}  // namespace baton::decode_worker

#endif  // BATON_DECODE_WORKER_EXPERT_STANDING_H_
