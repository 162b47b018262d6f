#ifndef BATON_DECODE_WORKER_EXPERT_MESSAGES_H_
#define BATON_DECODE_WORKER_EXPERT_MESSAGES_H_

// What the ranks of an expert-parallel group tell each other between passes, besides the step
// header (step_exchange.h): the messages of scheduler/expert_switch.h and two of the group itself.

#include <cstddef>
#include <cstdint>
#include <span>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "base/byte_stream.h"
#include "scheduler/expert_placement.h"
#include "scheduler/expert_switch.h"

namespace baton::decode_worker {

// To the leader: somebody asks for a rebalance.
struct AskRebalance {};
// From the leader: after this step form the group anew with these ranks, ascending, which have come
// back.
struct FormAnew {
  std::vector<int> returned;
};

using ExpertMessage = std::variant<scheduler::PrepareExperts, scheduler::PrepareEnded,
                                   scheduler::AbortPrepare, AskRebalance, FormAnew>;

// Appends one message to those for the same rank.
void PutMessage(const ExpertMessage& message, std::vector<std::byte>& mail);
// INTERNAL for bytes that are no messages about experts of this topology.
absl::StatusOr<std::vector<ExpertMessage>> TakeMessages(std::span<const std::byte> mail,
                                                        const scheduler::ExpertTopology& topology);

void PutActive(const scheduler::ActiveExperts& active, ByteWriter& out);
absl::StatusOr<scheduler::ActiveExperts> TakeActive(ByteReader& in,
                                                    const scheduler::ExpertTopology& topology);

}  // namespace baton::decode_worker

#endif  // BATON_DECODE_WORKER_EXPERT_MESSAGES_H_
