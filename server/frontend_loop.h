#ifndef BATON_SERVER_FRONTEND_LOOP_H_
#define BATON_SERVER_FRONTEND_LOOP_H_

// The router's shell: drains the inbox, lets scheduler::Router decide, hands the decisions to the
// outbox. Front ends (gRPC, HTTP) and worker clients only push events to the inbox and serve the
// outbox; one thread calls Tick and thereby owns all request state. Library: baton_frontend.

#include <cstddef>
#include <vector>

#include "base/bounded_queue.h"
#include "base/clock.h"
#include "scheduler/router.h"
#include "scheduler/step.h"

namespace baton::server {

// The loop's bounded queue, with room kept for what must not be refused. Thread-safe.
class FrontendInbox {
 public:
  // `capacity` events in all, of which client arrivals may fill the first half.
  explicit FrontendInbox(size_t capacity) : queue_(capacity) {}

  // A new client request; false when full: answer RESOURCE_EXHAUSTED with a retry hint.
  [[nodiscard]] bool TryArrive(scheduler::Arrived&& arrived);

  // Everything else: cancels, worker updates, drain. False when full (the loop is stuck or far
  // behind): the caller keeps the event and pushes back on its source (reads no further message).
  [[nodiscard]] bool TryPush(scheduler::RouterEvent&& event);

  BoundedQueue<scheduler::RouterEvent>& queue() { return queue_; }

 private:
  BoundedQueue<scheduler::RouterEvent> queue_;
};

// Where decisions go. Called on the loop's thread, in order; must not block.
class FrontendOutbox {
 public:
  virtual ~FrontendOutbox() = default;
  // Down the stream to decode rank `start.decode`. When the stream is broken, drop it: the
  // DecodeLost event that the worker client pushes puts the request right.
  virtual void Send(scheduler::SendStart start) = 0;
  virtual void Send(scheduler::SendCancel cancel) = 0;
  // To the client: new tokens, each exactly once and in order; then exactly one result for every
  // Arrived, after which nothing follows for its id. A result is also given to clients that left.
  virtual void Deliver(scheduler::EmitTokens tokens) = 0;
  virtual void Deliver(scheduler::RequestResult result) = 0;
  // The worker does not match the others; log the status and close the connection. It counts as
  // lost already.
  virtual void Refuse(scheduler::RefuseWorker refusal) = 0;
};

// Receives counters; called on the loop's thread after every step.
class FrontendObserver {
 public:
  virtual ~FrontendObserver() = default;
  virtual void OnStep(const scheduler::RouterReport& report) = 0;
};

class FrontendLoop {
 public:
  // All references must outlive the loop.
  FrontendLoop(const scheduler::RouterOptions& options, Clock& clock, FrontendInbox& inbox,
               FrontendOutbox& outbox, FrontendObserver& observer);

  // One round; never waits.
  scheduler::TickResult Tick();

  // After DrainRequested: no request is queued or running any more. Loop thread only.
  bool drained() const { return router_.drained(); }

  const scheduler::Router& router() const { return router_; }

 private:
  Clock& clock_;
  FrontendInbox& inbox_;
  FrontendOutbox& outbox_;
  FrontendObserver& observer_;
  scheduler::Router router_;
  baton::Tick next_check_;                      // of the router's invariants, when idle
  std::vector<scheduler::RouterEvent> events_;  // reused between ticks
  scheduler::RouterActionSink sink_;            // reused between ticks
};

}  // namespace baton::server

#endif  // BATON_SERVER_FRONTEND_LOOP_H_
