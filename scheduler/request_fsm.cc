#include "scheduler/request_fsm.h"

#include <string>

#include "base/check.h"

namespace baton::scheduler {
namespace {

constexpr uint32_t Bit(RequestState state) { return 1u << static_cast<uint32_t>(state); }

// Successors of each state. Cancelling and failing are possible everywhere before the end; going
// back to the queue wherever a worker may give the request up.
constexpr uint32_t Successors(RequestState from) {
  using enum RequestState;
  switch (from) {
    case kQueued:
      // Done: the last token came from an attempt whose end was lost with its rank.
      return Bit(kReserved) | Bit(kDone) | Bit(kFailed) | Bit(kCancelled);
    case kReserved:
      return Bit(kPrefilling) | Bit(kQueued) | Bit(kFailed) | Bit(kCancelled);
    case kPrefilling:
      // Done: the first token, which prefill samples, ended the request.
      return Bit(kLanded) | Bit(kDone) | Bit(kQueued) | Bit(kFailed) | Bit(kCancelled);
    case kLanded:
      // Done: not even one more token fits the rank.
      return Bit(kDecoding) | Bit(kDone) | Bit(kQueued) | Bit(kFailed) | Bit(kCancelled);
    case kDecoding:
      return Bit(kDone) | Bit(kQueued) | Bit(kFailed) | Bit(kCancelled);
    case kDone:
    case kFailed:
    case kCancelled:
      return 0;
  }
  return 0;
}

}  // namespace

const char* Name(RequestState state) {
  using enum RequestState;
  switch (state) {
    case kQueued:
      return "queued";
    case kReserved:
      return "reserved";
    case kPrefilling:
      return "prefilling";
    case kLanded:
      return "landed";
    case kDecoding:
      return "decoding";
    case kDone:
      return "done";
    case kFailed:
      return "failed";
    case kCancelled:
      return "cancelled";
  }
  return "?";
}

bool IsTerminal(RequestState state) { return Successors(state) == 0; }

bool IsLegal(RequestState from, RequestState to) { return (Successors(from) & Bit(to)) != 0; }

void RequestFsm::To(RequestState next) {
  BATON_CHECK_MSG(IsLegal(state_, next), std::string(Name(state_)) + " -> " + Name(next));
  state_ = next;
  if (next == RequestState::kQueued) ++attempt_;
}

}  // namespace baton::scheduler
