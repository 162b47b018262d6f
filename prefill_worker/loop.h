#ifndef BATON_PREFILL_WORKER_LOOP_H_
#define BATON_PREFILL_WORKER_LOOP_H_

// A prefill worker's shell: inbox -> scheduler::PrefillPlanner -> runner and hand-off -> outbox.
// One thread calls Tick; the loop owns planner and transport endpoint, and uses the runner alone;
// services only push events to the inbox and serve the outbox. Library: baton_prefill_worker_loop.

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "base/bounded_queue.h"
#include "base/clock.h"
#include "model/runner.h"
#include "prefill_worker/group_leader.h"
#include "prefill_worker/group_link.h"
#include "prefill_worker/handoff_sender.h"
#include "scheduler/prefill_planner.h"
#include "scheduler/step.h"
#include "transport/kv_transport.h"

namespace baton::prefill_worker {

// Thread-safe. Full: the caller keeps the event and reads no further message from its source.
using PrefillInbox = BoundedQueue<scheduler::PrefillEvent>;

// Where decisions go. Called on the loop's thread, in order; must not block.
class PrefillOutbox {
 public:
  virtual ~PrefillOutbox() = default;
  // To the decode rank that called; drop it when the connection is gone (CallerLost follows).
  virtual void Send(scheduler::SendReply reply) = 0;
  // To every connected router; the latest one also to each router that connects.
  virtual void Send(scheduler::PublishStatus status) = 0;
};

// Receives counters; called on the loop's thread after every step.
class PrefillObserver {
 public:
  virtual ~PrefillObserver() = default;
  virtual void OnStep(const scheduler::PrefillReport& report) = 0;
};

struct PrefillLoopOptions {
  // page_tokens, total_pages and max_positions are taken from the runner.
  scheduler::PrefillPlannerOptions planner;
  HandoffSenderOptions handoff;
  // In a group this is the leader's loop, and the runner and `handoff` are of its rank. Outlives
  // the loop. Null: alone.
  GroupLink* group = nullptr;
};

class PrefillLoop {
 public:
  // All references must outlive the loop. The transport, which wakes the inbox, goes with the loop.
  // INVALID_ARGUMENT when the options do not fit the runner or the transport.
  static absl::StatusOr<std::unique_ptr<PrefillLoop>> Create(
      const PrefillLoopOptions& options, Clock& clock, model::Runner& runner,
      std::unique_ptr<transport::KvTransport> transport, PrefillInbox& inbox, PrefillOutbox& outbox,
      PrefillObserver& observer);

  // Tells the followers that the group is over.
  ~PrefillLoop();

  // One round, at most one pass of the runner; never waits, but for the other ranks of its group.
  scheduler::TickResult Tick();

  // After DrainRequested: no call is open any more and no message in flight. Loop thread only.
  bool drained() const { return planner_.drained() && !sender_->has_posts_in_flight(); }

  // What a router may be told before the first step.
  scheduler::PrefillStatus initial_status() const;

  const scheduler::PrefillPlanner& planner() const { return planner_; }

  // Aborts when planner or hand-offs contradict themselves.
  void CheckInvariants() const;

 private:
  PrefillLoop(const scheduler::PrefillPlannerOptions& options, Clock& clock, model::Runner& runner,
              std::unique_ptr<HandoffSender> sender, GroupLink* group, PrefillInbox& inbox,
              PrefillOutbox& outbox, PrefillObserver& observer);

  void Execute(scheduler::PrefillAction& action);
  void RunPass(scheduler::RunPrefillPass& pass);

  Clock& clock_;
  model::Runner& runner_;
  PrefillInbox& inbox_;
  PrefillOutbox& outbox_;
  PrefillObserver& observer_;
  scheduler::PrefillPlanner planner_;
  std::unique_ptr<HandoffSender> sender_;
  std::optional<GroupLeader> leader_;            // in a group
  std::vector<scheduler::PrefillEvent> events_;  // what the next step sees
  scheduler::PrefillActionSink sink_;            // reused between ticks
};

}  // namespace baton::prefill_worker

#endif  // BATON_PREFILL_WORKER_LOOP_H_
