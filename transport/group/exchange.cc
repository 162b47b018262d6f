#include "transport/group/exchange.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace baton::transport {

const char* CallName(const CallShape& shape) {
  switch (shape.kind) {
    case CallKind::kAllReduceF32:
    case CallKind::kAllReduceBF16:
      return "AllReduceSum";
    case CallKind::kAllGather:
      return "AllGather";
    case CallKind::kBroadcast:
      return "Broadcast";
    case CallKind::kAllToAllV:
      return "AllToAllV";
    case CallKind::kBarrier:
      return "Barrier";
  }
  return "an unknown call";
}

std::string Describe(const CallShape& shape) {
  switch (shape.kind) {
    case CallKind::kAllReduceF32:
      return absl::StrCat("AllReduceSum of ", shape.bytes, " bytes of float32");
    case CallKind::kAllReduceBF16:
      return absl::StrCat("AllReduceSum of ", shape.bytes, " bytes of bfloat16");
    case CallKind::kAllGather:
      return absl::StrCat("AllGather of ", shape.bytes, " bytes");
    case CallKind::kBroadcast:
      return absl::StrCat("Broadcast of ", shape.bytes, " bytes from rank ", shape.root);
    case CallKind::kAllToAllV:
    case CallKind::kBarrier:
      return CallName(shape);
  }
  return absl::StrCat("an unknown call of kind ", static_cast<int>(shape.kind));
}

GroupFailure SilentRanks(const GroupState& state, const CallShape& shape, uint64_t call,
                         std::vector<int> suspects, const CallLimit& limit) {
  return {absl::DeadlineExceededError(absl::StrCat(state.Names(suspects), " did not take part in ",
                                                   CallName(shape), " (call ", call, ") within ",
                                                   limit.timeout.millis(), " ms")),
          std::move(suspects)};
}

GroupFailure DifferentCalls(const GroupState& state, uint64_t call, const CallShape& ours, int peer,
                            const CallShape& theirs) {
  return {absl::InvalidArgumentError(
              absl::StrCat("call ", call, ": ", state.Name(peer), " calls ", Describe(theirs),
                           " while ", state.Name(state.rank()), " calls ", Describe(ours),
                           "; all ranks must make the same calls in the same order")),
          {peer}};
}

GroupFailure DifferentSizes(const GroupState& state, uint64_t call, const CallShape& shape,
                            int peer, uint64_t sent_bytes, uint64_t expected_bytes) {
  return {absl::InvalidArgumentError(absl::StrCat(
              "call ", call, ", ", CallName(shape), ": ", state.Name(peer), " sends ", sent_bytes,
              " bytes to ", state.Name(state.rank()), ", which expects ", expected_bytes)),
          {peer}};
}

absl::Status LeftError(const GroupState& state) {
  return absl::UnavailableError(absl::StrCat(state.Name(state.rank()), " has left the group"));
}

absl::Status MovedOnError(const GroupState& state) {
  return absl::UnavailableError(
      absl::StrCat(state.Name(state.rank()), " goes on in a newer group, without this rank"));
}

}  // namespace baton::transport
