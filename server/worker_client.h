#ifndef BATON_SERVER_WORKER_CLIENT_H_
#define BATON_SERVER_WORKER_CLIENT_H_

// The router's connections to its workers: one long-lived stream to each decode rank and one to
// each prefill worker, opened again for ever when it breaks (after 100 ms, doubling up to 2 s;
// after 5 s when the two do not match). What arrives becomes events in the loop's inbox; while that
// is full a stream is not read.
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
#include "server/frontend_loop.h"
#include "wire/channel_factory.h"

namespace baton::server {

// One worker as GetServerInfo shows it.
struct WorkerSummary {
  std::string role;
  std::string instance;
  bool connected = false;
  bool draining = false;
  int32_t total_pages = 0;
  int32_t free_pages = 0;
  int32_t running = 0;
};

struct WorkerClientOptions {
  scheduler::WorkerIdentity identity;  // the router's own
  std::vector<std::string> decode_workers;
  std::vector<std::string> prefill_workers;
};

class WorkerClient {
 public:
  // Begins to connect. References must outlive the client.
  static std::unique_ptr<WorkerClient> Start(const WorkerClientOptions& options,
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

  virtual std::vector<WorkerSummary> Summaries() const = 0;
  // What every worker must match; empty fields are still open.
  virtual scheduler::WorkerIdentity Agreed() const = 0;
};

}  // namespace baton::server

#endif  // BATON_SERVER_WORKER_CLIENT_H_
