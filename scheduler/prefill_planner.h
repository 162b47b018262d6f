#ifndef BATON_SCHEDULER_PREFILL_PLANNER_H_
#define BATON_SCHEDULER_PREFILL_PLANNER_H_

// Decides, for one prefill worker, which calls are taken on, which chunks run in the next pass and
// which finished pages are handed off during it. Pure: see scheduler/README.md. One thread calls
// it.

#include <cstdint>
#include <map>
#include <span>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "base/clock.h"
#include "base/ids.h"
#include "base/strong_id.h"
#include "scheduler/messages.h"
#include "scheduler/request_fsm.h"
#include "scheduler/shared_pages.h"
#include "scheduler/step.h"

namespace baton::scheduler {

// A prefill worker's number for one connection of a decode rank.
struct CallerIdTag;
using CallerId = StrongId<CallerIdTag, uint64_t>;

struct PrefillPlannerOptions {
  int32_t page_tokens = 64;
  int32_t total_pages = 0;
  int32_t max_positions = 0;   // prompt tokens at most
  int32_t slots = 16;          // calls taken on at once
  int32_t chunk_tokens = 512;  // rows of one pass
  // Keep the pages of finished prompts and compute only what no earlier prompt began with.
  bool prefix_cache = true;
  // Last chunk computed, or last message posted -> the next one posted, until all are; then the
  // call fails with UNAVAILABLE. Not for the whole hand-off: a prompt that was all but cached may
  // have gigabytes to ship and no compute to hide that behind.
  Duration handoff_timeout = Duration::Millis(2'000);
};

// --- events -------------------------------------------------------------------------------

struct CallReceived {
  CallerId caller;
  PrefillCall call;
  Tick received_at;
};
struct CallCancelled {
  CallerId caller;
  RequestKey key;
};
// The decode rank is gone: its calls are dropped, nobody is told.
struct CallerLost {
  CallerId caller;
};
// The hand-off of one call ended: all pages posted (OK), or it failed and nothing more is posted.
struct HandoffFinished {
  RequestKey key;
  absl::Status status;
  uint32_t messages_posted = 0;
  uint64_t bytes_posted = 0;
};

// Messages of this call were posted since the last step.
struct HandoffProgressed {
  RequestKey key;
};

using PrefillEvent = std::variant<CallReceived, CallCancelled, CallerLost, HandoffFinished,
                                  PassFinished, DrainRequested, HandoffProgressed>;

// --- actions ------------------------------------------------------------------------------

struct OpenHandoff {
  RequestKey key;
  Landing landing;
};
// Post nothing more for this call and stop reading its pages. No HandoffFinished follows.
struct AbortHandoff {
  RequestKey key;
};

// Pages of one call that stand once the pass has run, cached ones included: ship them after each
// layer.
struct HandoffSlice {
  RequestKey key;
  uint32_t first_page = 0;    // index into the landing's pages
  std::vector<PageId> pages;  // where they stand on this worker
  uint32_t token_count = 0;   // all pages full but the last
  bool last = false;          // nothing follows for this call
};

// Run this pass, hand off as it goes, and answer with PassFinished in the next Step. At most one in
// a Step, and last.
struct RunPrefillPass {
  BatchPlan plan;
  std::vector<HandoffSlice> handoffs;
};
struct SendReply {
  CallerId caller;
  PrefillReply reply;
};
struct PublishStatus {
  PrefillStatus status;
};

using PrefillAction =
    std::variant<OpenHandoff, AbortHandoff, SendReply, PublishStatus, RunPrefillPass>;

// Counters are of this step, gauges after it.
struct PrefillReport {
  uint32_t calls = 0;
  uint32_t completed = 0;
  uint32_t refused = 0;
  uint32_t cancelled = 0;  // by decode, its loss or the deadline
  uint32_t failed = 0;
  uint32_t handoff_failures = 0;  // of `failed`
  uint32_t pass_failures = 0;     // of `failed`
  uint32_t stale_messages = 0;
  uint32_t rows = 0;           // in this step's pass
  uint64_t lookup_tokens = 0;  // of prompts taken on; of these:
  uint64_t hit_tokens = 0;     //   not computed, because they were cached
  uint64_t evicted_pages = 0;
  // gauges
  int32_t total_pages = 0;
  int32_t free_pages = 0;    // cached ones that nobody uses included
  int32_t cached_pages = 0;  // used by calls or not
  int32_t running = 0;
  int32_t waiting = 0;  // of `running`: no chunk of it has begun
  int64_t queued_tokens = 0;
  bool draining = false;
};

using PrefillActionSink = ActionSink<PrefillAction, PrefillReport>;

class PrefillPlanner {
 public:
  explicit PrefillPlanner(const PrefillPlannerOptions& options);

  // Applies `events` in order, lets time pass to `now`, then plans the next pass. Must hold a
  // PassFinished when the previous Step asked for a pass. Spans in the plan stay valid until the
  // next Step. `now` never goes back.
  void Step(Tick now, absl::Span<const PrefillEvent> events, PrefillActionSink& sink);

  // When Step has something to do even without events.
  Tick NextWake() const;

  PrefillStatus status() const;

  // Drain was requested and no call is open any more.
  bool drained() const { return draining_ && calls_.empty(); }

  // Aborts when the state contradicts itself (see README, "Invariants"). O(state).
  void CheckInvariants() const;

 private:
  // One call between arrival and reply.
  struct Call {
    CallerId caller;
    PrefillCall call;
    RequestFsm fsm{RequestState::kReserved, 0};
    uint64_t order = 0;  // of arrival
    PageTable table;
    int32_t computed = 0;  // prompt tokens whose latents stand in the pages, cached ones included
    int32_t cached = 0;    // of them
    int32_t shipped = 0;   // pages told to the hand-off, or not wanted
    Tick received_at;
    Tick deadline;
    Tick first_chunk_at;
    Tick handoff_until = Tick::Infinite();  // of the next message; set when all is computed
    Duration wait;
    Duration compute;
    bool has_first_token = false;
    SampledToken first_token;
    bool handed_off = false;
    uint32_t messages_posted = 0;
    uint64_t bytes_posted = 0;
  };
  using Calls = std::map<RequestKey, Call>;
  struct PassSlice {
    RequestKey key;
    int32_t rows = 0;
    bool last = false;
    bool sample = false;
  };

  void Apply(Tick now, const CallReceived& event, PrefillActionSink& sink);
  void Apply(Tick now, const CallCancelled& event, PrefillActionSink& sink);
  void Apply(Tick now, const CallerLost& event, PrefillActionSink& sink);
  void Apply(Tick now, const HandoffProgressed& event, PrefillActionSink& sink);
  void Apply(Tick now, const HandoffFinished& event, PrefillActionSink& sink);
  void Apply(Tick now, const PassFinished& event, PrefillActionSink& sink);
  void Apply(Tick now, const DrainRequested& event, PrefillActionSink& sink);
  absl::Status CanTakeOn(const PrefillCall& call) const;
  absl::Status TakePages(const PrefillCall& call, PageTable& table);
  void SkipCached(Call& call, PrefillActionSink& sink);
  void Expire(Tick now, PrefillActionSink& sink);
  void PlanPass(Tick now, PrefillActionSink& sink);
  void AddSlice(Tick now, Call& call, int32_t rows, RunPrefillPass& pass);
  void ReplyIfComplete(Calls::iterator it, PrefillActionSink& sink);
  // The one way out for every call: frees the pages and answers (unless the caller is gone).
  void Release(Calls::iterator it, RequestState end, absl::Status status, bool reply,
               PrefillActionSink& sink);

  const PrefillPlannerOptions options_;
  SharedPages pages_;
  Calls calls_;
  std::map<uint64_t, RequestKey> fifo_;  // calls not fully computed, in order of arrival
  std::vector<PassSlice> pass_;          // of the pass that runs; empty when none does
  uint64_t next_order_ = 0;
  uint64_t passes_ = 0;
  uint64_t evictions_seen_ = 0;  // that earlier reports told
  int64_t queued_tokens_ = 0;
  PrefillStatus published_;
  bool draining_ = false;
};

}  // namespace baton::scheduler

#endif  // BATON_SCHEDULER_PREFILL_PLANNER_H_
