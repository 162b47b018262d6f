#ifndef BATON_SERVER_WORKER_CLIENT_H_
#define BATON_SERVER_WORKER_CLIENT_H_

// The router's connections to its workers: one long-lived stream to each decode rank and one to
// each prefill worker. What arrives becomes events in the loop's inbox; while that is full a stream
// is not read.
//
// A list of workers has entries of two forms. "host:port" is one worker. "dns:host:port" is every
// address that the name has, and it is resolved again and again: an address that appears is
// connected to; one that is no longer in an answer is given up once it has no connection, so that a
// worker which runs, or drains, is never cut off by what a name server says.
//
// A stream that breaks is opened again (after 100 ms, doubling up to 2 s; after 5 s when the two do
// not match). A worker that is reached by several addresses (same role, instance and incarnation)
// counts once: its other addresses wait until the first is lost.
//
// Threads: Send, Refuse and Flush from the loop's thread, the rest from any.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "scheduler/messages.h"
#include "scheduler/router.h"
#include "server/dns_resolver.h"
#include "server/frontend_loop.h"
#include "server/worker_link.h"
#include "wire/channel_factory.h"

namespace baton::server {

// Where workers may be found.
struct WorkerPlaces {
  std::vector<std::string> decode;  // entries, see above
  std::vector<std::string> prefill;
  Duration dns_interval = Duration::Seconds(5);  // between two answers for a name; > 0
  std::shared_ptr<NameResolver> resolver;        // not null when there is an entry "dns:..."
};

class WorkerClient {
 public:
  // Begins to connect. `own`: the router's identity. References must outlive the client.
  static std::unique_ptr<WorkerClient> Start(const scheduler::WorkerIdentity& own,
                                             const WorkerPlaces& places,
                                             const wire::ChannelFactory& channels, Clock& clock,
                                             FrontendInbox& inbox, Metrics& metrics,
                                             const Log& log);
  // Ends every stream. The loop must have ended: what still comes is dropped.
  virtual ~WorkerClient() = default;

  virtual void Send(const scheduler::SendStart& start) = 0;
  virtual void Send(const scheduler::SendCancel& cancel) = 0;
  virtual void Refuse(const scheduler::RefuseWorker& refusal) = 0;
  // Pushes events that found the inbox full. Called after every step.
  virtual void Flush() = 0;

  // Decode ranks, then prefill workers; each worker once. A name without an address stands for
  // itself.
  virtual std::vector<WorkerSummary> Summaries() const = 0;
  // What every worker must match; empty fields are still open.
  virtual scheduler::WorkerIdentity Agreed() const = 0;
};

}  // namespace baton::server

#endif  // BATON_SERVER_WORKER_CLIENT_H_
