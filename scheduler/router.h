#ifndef BATON_SCHEDULER_ROUTER_H_
#define BATON_SCHEDULER_ROUTER_H_

// Decides, for one router, which request goes to which decode rank and prefill worker and when,
// what is retried, and what each client is told. Pure: see scheduler/README.md for state, events,
// actions and invariants. One thread calls it.

#include <cstdint>
#include <deque>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "base/clock.h"
#include "base/ids.h"
#include "scheduler/messages.h"
#include "scheduler/prefix_index.h"
#include "scheduler/prefix_key.h"
#include "scheduler/request_fsm.h"
#include "scheduler/step.h"

namespace baton::scheduler {

struct RouterOptions {
  // This router's own view of the model; empty or zero fields match any worker. The first worker
  // that joins fills the rest in (see CheckCompatible).
  WorkerIdentity identity;

  int32_t max_queued = 1024;   // requests waiting for a worker
  int32_t max_attempts = 3;    // tries that may end in kRetryable or with a lost decode rank
  int32_t max_requeues = 64;   // refusals and preemptions without a new token in between
  int32_t scan_depth = 32;     // queued requests looked at in one step
  int32_t max_overtakes = 64;  // times a request that does not fit may be overtaken by later ones
  // Output tokens for which a decode rank reserves pages at the start; must be what the ranks use.
  int32_t reserve_output_tokens = 256;
  Duration no_workers_timeout = Duration::Millis(10'000);  // then queued requests end UNAVAILABLE
  Duration release_timeout = Duration::Millis(10'000);     // bound on waiting for `released`
  Duration requeue_backoff = Duration::Millis(2);          // doubles with every requeue
  Duration max_requeue_backoff = Duration::Millis(256);
  Duration max_duration = Duration::Seconds(3600);  // of a request whose deadline is later
  // A prefill worker that was reported lost is avoided for so long; a decode rank that has failed
  // an attempt, while others have room.
  Duration suspect_period = Duration::Millis(1'000);
  Duration retry_after = Duration::Millis(500);  // hint that goes with refusals
};

// --- events -------------------------------------------------------------------------------

// A valid, tokenized request; `id` was never used before.
struct Arrived {
  RequestId id;
  std::vector<TokenId> prompt;  // at least one token
  SamplingParams sampling;
  std::string cache_salt;            // shares cached prefixes with requests of the same salt alone
  Tick arrived_at;                   // when the front end received it: TTFT counts from here
  Tick deadline = Tick::Infinite();  // absolute
};

// The client asked to stop or went away. Unknown ids (already ended) are ignored.
struct ClientCancelled {
  RequestId id;
};

// A connection to a decode rank is up. A worker that joins while joined counts as lost first.
struct DecodeJoined {
  WorkerId worker;
  WorkerIdentity identity;
  DecodeStatus status;
};
struct DecodeUpdated {
  WorkerId worker;
  DecodeUpdate update;
  Tick received_at;
};
// The connection broke: the rank drops (or has lost) everything that this router started there.
struct DecodeLost {
  WorkerId worker;
  absl::Status status;
};

// WorkerIds of prefill workers and decode ranks come from one space.
struct PrefillJoined {
  WorkerId worker;
  std::string address;  // what decode ranks are told to call
  WorkerIdentity identity;
  PrefillStatus status;
};
struct PrefillUpdated {
  WorkerId worker;
  PrefillStatus status;
};
struct PrefillLost {
  WorkerId worker;
  absl::Status status;
};

using RouterEvent = std::variant<Arrived, ClientCancelled, DecodeJoined, DecodeUpdated, DecodeLost,
                                 PrefillJoined, PrefillUpdated, PrefillLost, DrainRequested>;

// --- actions ------------------------------------------------------------------------------

struct SendStart {
  WorkerId decode;
  StartRequest request;
};
struct SendCancel {
  WorkerId decode;
  CancelRequest request;
};

// New tokens for the client: output tokens [first_index, first_index + tokens.size()).
struct EmitTokens {
  RequestId id;
  int32_t first_index = 0;
  std::vector<SampledToken> tokens;  // not empty
};

// Adds up to the time to the first token, exactly.
struct StageTimings {
  Duration queue;  // arrival -> the start of the attempt that gave the first token
  Duration prefill_wait;
  Duration prefill;
  Duration transfer_exposed;
  Duration decode_wait;  // the rest
  Duration Total() const { return queue + prefill_wait + prefill + transfer_exposed + decode_wait; }
};

// The one terminal event of a request.
struct RequestResult {
  RequestId id;
  FinishReason reason = FinishReason::kNone;  // kStop, kLength, kCancelled or kError
  // OK for kStop and kLength. CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED (queue full),
  // INVALID_ARGUMENT (fits no worker), UNAVAILABLE (draining, no workers, out of tries), INTERNAL.
  absl::Status status;
  Duration retry_after;  // > 0: worth trying again after this
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;       // of the prompt, not computed for this request
  int32_t decode_form_tokens = 0;  // of the prompt, taken from pages of generated tokens
  int32_t output_tokens = 0;
  int32_t attempts = 0;  // starts sent
  bool has_first_token = false;
  Duration ttft;  // arrival -> first token decided here; valid with has_first_token
  StageTimings stages;
  Duration total;  // arrival -> now
};

struct RefuseWorker {
  WorkerId worker;
  absl::Status status;  // FAILED_PRECONDITION, names every field that differs
};

using RouterAction = std::variant<SendStart, SendCancel, EmitTokens, RequestResult, RefuseWorker>;

// Counters are of this step, gauges after it.
struct RouterReport {
  uint32_t arrived = 0;
  uint32_t starts = 0;
  uint32_t tokens = 0;    // delivered to clients
  uint32_t finished = 0;  // results by status
  uint32_t cancelled = 0;
  uint32_t failed = 0;            // every other status
  uint32_t refused_full = 0;      // of `failed`: queue full
  uint32_t retries = 0;           // requeued after kRetryable or a lost rank; of these:
  uint32_t decode_losses = 0;     //   the decode rank was lost
  uint32_t prefill_losses = 0;    //   the prefill worker was lost
  uint32_t refusals = 0;          // requeued after kRefused
  uint32_t preemptions = 0;       // requeued after kPreempted
  uint32_t stale_messages = 0;    // chunks, ends of attempts that are over
  uint32_t duplicate_tokens = 0;  // repeated and equal to what the client has
  uint32_t token_conflicts = 0;   // repeated or skipped and different: a bug somewhere
  uint32_t release_timeouts = 0;  // attempts never confirmed released
  uint32_t workers_refused = 0;
  // gauges
  int32_t queued = 0;
  int32_t running = 0;    // started, not ended
  int32_t releasing = 0;  // ended attempts that still wait for `released`
  int32_t decode_ranks = 0;
  int32_t prefill_workers = 0;
  bool draining = false;
};

using RouterActionSink = ActionSink<RouterAction, RouterReport>;

class Router {
 public:
  explicit Router(const RouterOptions& options);

  // Applies `events` in order, then lets time pass to `now` (deadlines, timeouts), then dispatches.
  // `now` never goes back.
  void Step(Tick now, absl::Span<const RouterEvent> events, RouterActionSink& sink);

  // When Step has something to do even without events.
  Tick NextWake() const;

  // Drain was requested and no request is queued or running (attempts may still be releasing).
  bool drained() const { return draining_ && requests_.empty(); }

  // Aborts when the state contradicts itself (see README, "Invariants"). O(state).
  void CheckInvariants() const;

 private:
  struct Request {
    RequestId id;
    uint64_t order = 0;  // of arrival; the queue is sorted by it, so retries go to the front
    std::vector<TokenId> prompt;
    std::string cache_salt;
    std::vector<PrefixKey> keys;  // of the prompt's full pages; made when it is first dispatched
    SamplingParams sampling;
    std::vector<TokenId> delivered;  // output tokens that the client has
    Tick arrived_at;
    Tick deadline;
    Tick queued_at;   // since when it has been in the queue
    Tick not_before;  // backoff
    Tick started_at;  // of the current attempt
    RequestFsm fsm;
    int32_t starts = 0;
    int32_t failures = 0;  // attempts that count
    int32_t requeues = 0;  // attempts that do not, since the last new token
    int32_t overtaken = 0;
    bool avoids_prefill = false;
    WorkerId avoided_prefill;
    std::vector<WorkerId> avoided_decode;  // that failed it; at most max_attempts
    bool has_first_token = false;
    int32_t cached_tokens = 0;
    int32_t decode_form_tokens = 0;
    Duration ttft;
    StageTimings stages;
  };
  // One start, until both workers have let go of it.
  struct Attempt {
    WorkerId decode;
    WorkerId prefill;
    int32_t prompt_pages = 0;
    int64_t prefill_tokens = 0;  // of the prompt, that prefill is believed to have to compute
    bool prefill_busy = true;    // counts against the prefill worker's slots and pages
    bool ended = false;
    Tick release_by = Tick::Infinite();  // set when ended
  };
  struct DecodeRank {
    WorkerIdentity identity;
    DecodeStatus status;
    uint64_t starts_sent = 0;
    std::deque<int32_t> unseen_pages;  // of starts that `status` does not include yet
    int32_t unseen_sum = 0;            // of unseen_pages
    int32_t attempts = 0;              // not ended
    std::set<RequestKey> keys;         // of its attempts, ended ones included
    uint64_t last_start = 0;           // number of the last start that it got; 0: none
    Tick suspect_until;                // it has just failed an attempt
    int32_t prompt_pages = 0;          // of these
    PrefixIndex prefixes;
  };
  struct PrefillWorker {
    std::string address;
    WorkerIdentity identity;
    PrefillStatus status;
    int32_t busy = 0;  // own attempts that hold a slot
    int32_t busy_pages = 0;
    int64_t busy_tokens = 0;
    std::set<RequestKey> keys;  // of these attempts
    uint64_t last_start = 0;    // as a decode rank's
    Tick suspect_until;
    PrefixIndex prefixes;
  };
  using Requests = std::map<RequestId, Request>;
  using Attempts = std::map<RequestKey, Attempt>;

  void Apply(Tick now, const Arrived& event, RouterActionSink& sink);
  void Apply(Tick now, const ClientCancelled& event, RouterActionSink& sink);
  void Apply(Tick now, const DecodeJoined& event, RouterActionSink& sink);
  void Apply(Tick now, const DecodeUpdated& event, RouterActionSink& sink);
  void Apply(Tick now, const DecodeLost& event, RouterActionSink& sink);
  void Apply(Tick now, const PrefillJoined& event, RouterActionSink& sink);
  void Apply(Tick now, const PrefillUpdated& event, RouterActionSink& sink);
  void Apply(Tick now, const PrefillLost& event, RouterActionSink& sink);
  void Apply(Tick now, const DrainRequested& event, RouterActionSink& sink);

  bool Admits(WorkerId worker, const WorkerIdentity& identity, RouterActionSink& sink);
  void OnChunk(Tick now, WorkerId worker, Tick received_at, const TokenChunk& chunk,
               RouterActionSink& sink);
  static void OnFirstToken(Tick received_at, Request& request, const TokenChunk& chunk);
  void OnEnd(Tick now, WorkerId worker, const RequestEnd& end, RouterActionSink& sink);
  void OnReleased(WorkerId worker, RequestKey key, RouterActionSink& sink);

  // Back to the queue, or failed when a bound is reached. `counts`: as an attempt.
  void Requeue(Tick now, Requests::iterator it, bool counts, const absl::Status& why,
               RouterActionSink& sink);
  // The one terminal event of a request; takes it out of every structure.
  void Finish(Tick now, Requests::iterator it, FinishReason reason, absl::Status status,
              RouterActionSink& sink);
  // Ends a request from this side while an attempt of it may be running.
  void Abandon(Tick now, Requests::iterator it, FinishReason reason, absl::Status status,
               RouterActionSink& sink);
  void EndAttempt(Tick now, Attempts::iterator it);
  void EraseAttempt(Attempts::iterator it);
  void FreePrefill(Attempts::iterator it);
  void LoseDecode(Tick now, WorkerId worker, const absl::Status& why, RouterActionSink& sink);

  void Expire(Tick now, RouterActionSink& sink);
  void FailWithoutWorkers(Tick now, RouterActionSink& sink);
  void Dispatch(Tick now, RouterActionSink& sink);
  bool AnyCredit() const;
  bool TryDispatch(Tick now, Request& request, RouterActionSink& sink);
  absl::Status FitsSomewhere(const Request& request) const;
  int32_t PagesAtStart(const Request& request) const;
  static std::pair<int32_t, uint64_t> Load(const DecodeRank& rank);
  static double ShareLeft(const DecodeRank& rank, int32_t pages);
  void MakeKeys(Request& request) const;
  std::map<WorkerId, DecodeRank>::iterator PickDecode(Tick now, const Request& request,
                                                      int32_t pages);
  std::map<WorkerId, PrefillWorker>::iterator PickPrefill(Tick now, const Request& request);
  int32_t CachedPages(const PrefixIndex& prefixes, const Request& request) const;
  int64_t PrefillCost(const PrefillWorker& worker, const Request& request) const;

  const RouterOptions options_;
  WorkerIdentity identity_;
  Requests requests_;                    // queued and running
  std::map<uint64_t, RequestId> queue_;  // by order of arrival
  Attempts attempts_;                    // running and releasing
  std::map<WorkerId, DecodeRank> decode_;
  std::map<WorkerId, PrefillWorker> prefill_;
  std::set<std::pair<Tick, RequestId>> deadlines_;    // of every request
  std::set<std::pair<Tick, RequestKey>> release_by_;  // of every ended attempt
  uint64_t next_order_ = 0;
  uint64_t starts_ = 0;               // sent in all
  int32_t largest_decode_pages_ = 0;  // of any rank ever seen: what cannot fit is refused
  int32_t largest_prefill_pages_ = 0;
  Tick workers_missing_since_;             // infinite: a usable pair is there
  Tick next_dispatch_ = Tick::Infinite();  // when a backoff ends
  bool draining_ = false;
};

}  // namespace baton::scheduler

#endif  // BATON_SCHEDULER_ROUTER_H_
