#ifndef BATON_SCHEDULER_DECODE_PLANNER_H_
#define BATON_SCHEDULER_DECODE_PLANNER_H_

// Decides, for one decode rank, which attempts are taken on, where their hand-offs land, which
// sequences run in the next pass, who is preempted and how many credits each router holds. Pure:
// see scheduler/README.md. One thread calls it.

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "base/clock.h"
#include "base/ids.h"
#include "scheduler/messages.h"
#include "scheduler/request_fsm.h"
#include "scheduler/shared_pages.h"
#include "scheduler/step.h"

namespace baton::scheduler {

struct DecodePlannerOptions {
  int32_t page_tokens = 64;
  int32_t total_pages = 0;
  int32_t max_positions = 0;      // prompt + output tokens of a sequence at most
  std::string transport_address;  // of this rank; goes into every landing
  uint64_t first_epoch = 1;       // drawn at random when the process starts; > 0
  std::vector<TokenId> eos_token_ids;

  int32_t max_landings = 8;    // attempts between start and landed, outstanding credits included
  int32_t max_sequences = 64;  // attempts that hold pages; <= max_batch_rows
  int32_t max_batch_rows = 256;
  int32_t reserve_output_tokens = 256;  // pages reserved at the start beyond prompt and delivered
  int32_t pages_per_credit = 4;         // free pages that each outstanding credit should find
  // Keep the prompts' pages of sequences that are over, so that only what a later prompt adds has
  // to land.
  bool prefix_cache = true;
  // Keep the pages of generated tokens too. Their latents are in decode form: a prompt that goes on
  // from them gets other last bits than one whose latents all come from prefill.
  bool reuse_generated = false;
  Duration handoff_timeout = Duration::Millis(2'000);   // reply -> landing complete
  Duration prefill_timeout = Duration::Millis(60'000);  // call -> reply
  Duration release_timeout = Duration::Millis(5'000);   // cancel of a call -> its reply
};

// --- events -------------------------------------------------------------------------------

struct RouterJoined {
  RouterId router;
};
// The stream broke: everything that the router started here is released, nobody is told.
struct RouterLost {
  RouterId router;
};
struct StartReceived {
  RouterId router;
  StartRequest request;
  Tick received_at;
};
struct CancelReceived {
  RouterId router;
  CancelRequest request;
};
struct PrefillReplied {
  PrefillReply reply;
  Tick received_at;
};
// The call ended without a reply; no more will follow.
struct PrefillCallFailed {
  RequestKey key;
  absl::Status status;
  bool worker_lost = false;  // the connection is gone (as opposed to: this call was not accepted)
};
// Every page of every layer of the landing stands verified in its place.
struct LandingCompleted {
  RequestKey key;
  Epoch epoch;
  uint32_t messages = 0;  // accepted
};
// A message for this landing failed its check: it will never complete.
struct LandingCorrupted {
  RequestKey key;
  Epoch epoch;
  absl::Status status;
};

using DecodeEvent = std::variant<RouterJoined, RouterLost, StartReceived, CancelReceived,
                                 PrefillReplied, PrefillCallFailed, LandingCompleted,
                                 LandingCorrupted, PassFinished, DrainRequested>;

// --- actions ------------------------------------------------------------------------------

struct SendUpdate {
  RouterId router;
  DecodeUpdate update;
};
struct CallPrefill {
  std::string address;
  PrefillCall call;
};
// Best effort; the call still ends in PrefillReplied or PrefillCallFailed (or nothing, after
// release_timeout the planner stops waiting).
struct CancelPrefill {
  std::string address;
  RequestKey key;
};
// Accept messages with this epoch into these pages, until CloseLanding.
struct OpenLanding {
  RequestKey key;
  Epoch epoch;
  std::vector<PageId> pages;  // of the prompt, without those that are there already
  int32_t token_count = 0;    // all pages full but the last
};
struct CloseLanding {
  Epoch epoch;
};
// Run this pass and answer with PassFinished in the next Step. At most one in a Step, and last.
struct RunDecodePass {
  BatchPlan plan;
};

using DecodeAction =
    std::variant<OpenLanding, CloseLanding, CallPrefill, CancelPrefill, SendUpdate, RunDecodePass>;

// Counters are of this step, gauges after it.
struct DecodeReport {
  uint32_t starts = 0;
  uint32_t finished = 0;
  uint32_t cancelled = 0;
  uint32_t failed = 0;
  uint32_t refused = 0;
  uint32_t preempted = 0;
  uint32_t retryable = 0;         // sum of the causes below
  uint32_t prefill_errors = 0;    // the call failed, or its worker was lost
  uint32_t handoff_timeouts = 0;  // messages missing
  uint32_t handoff_corrupt = 0;   // a checksum or the message count was wrong
  uint32_t pass_failures = 0;     // attempts hit by a failed pass
  uint32_t release_timeouts = 0;  // calls that never confirmed their cancel
  uint32_t stale_messages = 0;
  uint32_t tokens = 0;  // sent to routers
  uint32_t rows = 0;    // in this step's pass
  uint32_t landed = 0;
  Duration transfer_exposed;      // summed over the step's first chunks
  uint64_t lookup_tokens = 0;     // of prompts taken on; of these:
  uint64_t hit_tokens = 0;        //   not to be shipped, because their pages were cached
  uint64_t generated_tokens = 0;  //   of `hit_tokens`: in decode form
  uint64_t evicted_pages = 0;
  // gauges
  int32_t total_pages = 0;
  int32_t free_pages = 0;    // cached ones that nobody uses included
  int32_t cached_pages = 0;  // used by sequences or not
  int32_t quarantined_pages = 0;
  int32_t running = 0;
  int32_t landing = 0;
  int32_t releasing = 0;
  int32_t routers = 0;
  bool draining = false;
};

using DecodeActionSink = ActionSink<DecodeAction, DecodeReport>;

class DecodePlanner {
 public:
  explicit DecodePlanner(const DecodePlannerOptions& options);

  // Applies `events` in order, lets time pass to `now`, then plans the next pass. Must hold a
  // PassFinished when the previous Step asked for a pass. Spans in the plan stay valid until the
  // next Step. `now` never goes back.
  void Step(Tick now, absl::Span<const DecodeEvent> events, DecodeActionSink& sink);

  // When Step has something to do even without events.
  Tick NextWake() const;

  // Drain was requested and no attempt holds pages any more.
  bool drained() const { return draining_ && attempts_.empty(); }

  int32_t open_landings() const { return LandingCount(); }

  // Aborts when the state contradicts itself (see README, "Invariants"). O(state).
  void CheckInvariants() const;

 private:
  // One attempt between start and released.
  struct Attempt {
    RequestKey key;
    RouterId router;
    bool router_gone = false;
    RequestFsm fsm{RequestState::kReserved, 0};
    uint64_t age = 0;             // of admission: smaller is older
    std::vector<TokenId> tokens;  // prompt, then output
    int32_t prompt_tokens = 0;
    int32_t computed = 0;  // tokens whose latents stand in `table`, once landed
    SamplingParams sampling;
    PageTable table;
    int32_t cached_tokens = 0;       // of the prompt, that prefill had not to compute
    int32_t decode_form_tokens = 0;  // of the prompt, that earlier sequences generated
    Tick received_at;
    Tick deadline;
    std::string prefill_address;
    Epoch epoch;
    bool landing_open = false;
    bool writer = false;    // the call has no reply yet: prefill may still write
    bool complete = false;  // the landing is
    bool replied = false;   // with OK
    bool first_chunk_sent = false;
    uint32_t messages_posted = 0;
    uint32_t messages_accepted = 0;
    FirstTokenTimings timings;
    // Bound on what the attempt waits for: the reply, the rest of the landing or, once it ended,
    // the confirmation that its writer is gone. Infinite while decoding.
    Tick wait_until = Tick::Infinite();
    bool ended = false;  // RequestEnd was sent; pages are quarantined
  };
  using Attempts = std::map<RequestKey, Attempt>;
  struct Router {
    uint64_t credits_granted = 0;
    uint64_t starts_received = 0;
    DecodeUpdate update;  // of this step
    bool announced = false;
    DecodeStatus last_status;
  };
  struct PassSlice {
    RequestKey key;
    int32_t rows = 0;
    bool sample = false;
  };

  void Apply(Tick now, const RouterJoined& event, DecodeActionSink& sink);
  void Apply(Tick now, const RouterLost& event, DecodeActionSink& sink);
  void Apply(Tick now, const StartReceived& event, DecodeActionSink& sink);
  void Apply(Tick now, const CancelReceived& event, DecodeActionSink& sink);
  void Apply(Tick now, const PrefillReplied& event, DecodeActionSink& sink);
  void Apply(Tick now, const PrefillCallFailed& event, DecodeActionSink& sink);
  void Apply(Tick now, const LandingCompleted& event, DecodeActionSink& sink);
  void Apply(Tick now, const LandingCorrupted& event, DecodeActionSink& sink);
  void Apply(Tick now, const PassFinished& event, DecodeActionSink& sink);
  void Apply(Tick now, const DrainRequested& event, DecodeActionSink& sink);

  struct Ending {
    EndKind kind = EndKind::kFinished;
    FinishReason reason = FinishReason::kNone;
    absl::Status status;
    bool prefill_lost = false;
  };
  absl::Status CanAdmit(const StartRequest& start) const;
  absl::Status HasRoom() const;
  absl::Status TakePages(const StartRequest& start, PageTable& table);
  void Admit(Tick now, const StartReceived& event, PageTable table, DecodeActionSink& sink);
  void OnPrefillError(Tick now, Attempts::iterator it, const absl::Status& status, bool worker_lost,
                      DecodeActionSink& sink);
  void JoinIfLanded(Tick now, Attempts::iterator it, DecodeActionSink& sink);
  // Takes one sampled token; false when it ended the attempt.
  bool Append(Tick now, Attempts::iterator it, const SampledToken& token, DecodeActionSink& sink);
  void AddChunk(Attempt& attempt, const SampledToken* token, DecodeActionSink& sink);
  void Expire(Tick now, DecodeActionSink& sink);
  void GrantCredits();
  RunDecodePass PlanPass(Tick now, DecodeActionSink& sink);
  void AddSlice(Attempt& attempt, int32_t rows, RunDecodePass& pass);
  bool GrowFor(Tick now, Attempts::iterator it, int32_t rows, DecodeActionSink& sink);
  void SendUpdates(DecodeActionSink& sink);

  // The one way out for every attempt: finish, cancel, deadline, refusal by prefill, peer loss,
  // preemption. Frees the pages, or quarantines them while prefill may still write.
  void Release(Tick now, Attempts::iterator it, const Ending& ending, DecodeActionSink& sink);
  void EndQuarantine(Attempts::iterator it);
  void TellEnd(RouterId router, RequestKey key, const Ending& ending, DecodeActionSink& sink);
  bool Stops(const Attempt& attempt, TokenId token) const;
  int32_t LandingCount() const;
  DecodeStatus StatusFor(const Router& router) const;

  const DecodePlannerOptions options_;
  SharedPages pages_;
  Attempts attempts_;
  std::map<uint64_t, RequestKey> running_;  // landed or decoding, oldest first
  std::map<RouterId, Router> routers_;
  std::vector<PassSlice> pass_;  // of the pass that runs; empty when none does
  uint64_t next_epoch_;
  uint64_t next_age_ = 0;
  uint64_t passes_ = 0;
  uint64_t evictions_seen_ = 0;  // that earlier reports told
  bool draining_ = false;
};

}  // namespace baton::scheduler

#endif  // BATON_SCHEDULER_DECODE_PLANNER_H_
