#ifndef BATON_DECODE_WORKER_LOOP_H_
#define BATON_DECODE_WORKER_LOOP_H_

// A decode rank's shell: inbox and landed messages -> scheduler::DecodePlanner -> runner -> outbox.
// One thread calls Tick and owns planner, runner and transport endpoint; services only push events
// to the inbox and serve the outbox. Library: baton_decode_worker_loop.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/bounded_queue.h"
#include "base/clock.h"
#include "decode_worker/landing.h"
#include "model/runner.h"
#include "scheduler/decode_planner.h"
#include "scheduler/step.h"
#include "transport/kv_transport.h"

namespace baton::decode_worker {

// Thread-safe. Full: the caller keeps the event and reads no further message from its source.
using DecodeInbox = BoundedQueue<scheduler::DecodeEvent>;

// Where decisions go. Called on the loop's thread, in order; must not block.
class DecodeOutbox {
 public:
  virtual ~DecodeOutbox() = default;
  // Up the stream to one router; drop it when the stream is gone (RouterLost follows). The first
  // update after RouterJoined carries the status with which the services announce the rank.
  virtual void Send(scheduler::SendUpdate update) = 0;
  // To the prefill worker; ends in PrefillReplied or PrefillCallFailed.
  virtual void Send(scheduler::CallPrefill call) = 0;
  virtual void Send(scheduler::CancelPrefill cancel) = 0;
};

// Receives counters; called on the loop's thread after every step.
class DecodeObserver {
 public:
  virtual ~DecodeObserver() = default;
  virtual void OnStep(const scheduler::DecodeReport& report, const LandingReport& landing) = 0;
};

struct DecodeLoopOptions {
  // page_tokens, total_pages, max_positions and transport_address are taken from runner and
  // transport.
  scheduler::DecodePlannerOptions planner;
  int32_t max_transport_events = 256;  // looked at in one tick
};

class DecodeLoop {
 public:
  // All references must outlive the loop; transport and runner must stop calling their wake-ups
  // before the inbox goes. INVALID_ARGUMENT when the options contradict themselves or the runner.
  static absl::StatusOr<std::unique_ptr<DecodeLoop>> Create(const DecodeLoopOptions& options,
                                                            Clock& clock, model::Runner& runner,
                                                            transport::KvTransport& transport,
                                                            DecodeInbox& inbox,
                                                            DecodeOutbox& outbox,
                                                            DecodeObserver& observer);

  // One round, at most one pass of the runner; never waits, but for the other ranks of its group: a
  // rank that has nothing to run takes part in their pass.
  scheduler::TickResult Tick();

  // After DrainRequested: no attempt holds pages any more. Loop thread only.
  bool drained() const { return planner_.drained(); }

  const scheduler::DecodePlanner& planner() const { return planner_; }

  // Aborts when planner and landings contradict themselves or each other.
  void CheckInvariants() const;

 private:
  DecodeLoop(const DecodeLoopOptions& options, Clock& clock, model::Runner& runner,
             transport::KvTransport& transport, DecodeInbox& inbox, DecodeOutbox& outbox,
             DecodeObserver& observer);

  bool PollTransport();
  void Execute(scheduler::DecodeAction& action);
  void RunEmptyPass();

  const int32_t max_transport_events_;
  Clock& clock_;
  model::Runner& runner_;
  transport::KvTransport& transport_;
  DecodeInbox& inbox_;
  DecodeOutbox& outbox_;
  DecodeObserver& observer_;
  scheduler::DecodePlanner planner_;
  LandingTable landings_;
  std::vector<scheduler::DecodeEvent> events_;        // what the next step sees
  scheduler::DecodeActionSink sink_;                  // reused between ticks
  std::vector<transport::KvEvent> transport_events_;  // reused between polls
};

}  // namespace baton::decode_worker

#endif  // BATON_DECODE_WORKER_LOOP_H_
