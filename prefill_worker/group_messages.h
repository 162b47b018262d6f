#ifndef BATON_PREFILL_WORKER_GROUP_MESSAGES_H_
#define BATON_PREFILL_WORKER_GROUP_MESSAGES_H_

// What the ranks of a tensor-parallel prefill group tell each other. Rank 0, the leader, plans; the
// others do what it says, in the same order: they open and abort their shares of hand-offs and run
// the same passes. In return they say how their shares ended.

#include <cstddef>
#include <optional>
#include <span>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "scheduler/prefill_planner.h"

namespace baton::prefill_worker {

struct GroupCommand {
  std::vector<std::variant<scheduler::OpenHandoff, scheduler::AbortHandoff>> handoffs;  // in order
  const scheduler::RunPrefillPass* pass = nullptr;  // null: none; only read
  bool stop = false;                                // the group is over
};

// A pass as a follower runs it: of each sequence only the tokens of the rows, without sampling
// parameters (the leader samples). Owns what the plan's spans point to.
struct FollowerPass {
  scheduler::RunPrefillPass pass;
  std::vector<std::vector<TokenId>> tokens;
  std::vector<std::vector<PageId>> pages;
};
struct FollowerCommand {
  std::vector<std::variant<scheduler::OpenHandoff, scheduler::AbortHandoff>> handoffs;
  std::optional<FollowerPass> pass;
  bool stop = false;
};

std::vector<std::byte> EncodeCommand(const GroupCommand& command);
// INTERNAL for bytes that are not a command.
absl::StatusOr<FollowerCommand> DecodeCommand(std::span<const std::byte> bytes);

std::vector<std::byte> EncodeResults(std::span<const scheduler::HandoffFinished> results);
absl::StatusOr<std::vector<scheduler::HandoffFinished>> DecodeResults(
    std::span<const std::byte> bytes);

}  // namespace baton::prefill_worker

#endif  // BATON_PREFILL_WORKER_GROUP_MESSAGES_H_
