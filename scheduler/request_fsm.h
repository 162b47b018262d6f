#ifndef BATON_SCHEDULER_REQUEST_FSM_H_
#define BATON_SCHEDULER_REQUEST_FSM_H_

// Where a request stands, and the only transitions it may take (table in scheduler/README.md).
// Router and workers each hold one per request they own; an illegal transition is a bug and aborts.

#include <cstdint>
#include <ostream>

namespace baton::scheduler {

enum class RequestState : uint8_t {
  kQueued,      // at the router; holds nothing on any worker
  kReserved,    // a credit, a prefill slot and pages are set aside
  kPrefilling,  // the prefill worker computes and hands off
  kLanded,      // every page stands verified at the decode rank
  kDecoding,    // part of decode passes
  kDone,        // terminal: stop or length
  kFailed,      // terminal
  kCancelled,   // terminal
};

const char* Name(RequestState state);
bool IsTerminal(RequestState state);
bool IsLegal(RequestState from, RequestState to);

class RequestFsm {
 public:
  // A request begins its life queued at the router; on a worker it begins reserved.
  RequestFsm() = default;
  RequestFsm(RequestState state, uint32_t attempt) : state_(state), attempt_(attempt) {}

  RequestState state() const { return state_; }
  uint32_t attempt() const { return attempt_; }
  bool running() const { return state_ != RequestState::kQueued && !IsTerminal(state_); }

  // Aborts when the transition is illegal. Going back to kQueued begins the next attempt.
  void To(RequestState next);

 private:
  RequestState state_ = RequestState::kQueued;
  uint32_t attempt_ = 0;
};

}  // namespace baton::scheduler

#endif  // BATON_SCHEDULER_REQUEST_FSM_H_
