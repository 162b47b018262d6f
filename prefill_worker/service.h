#ifndef BATON_PREFILL_WORKER_SERVICE_H_
#define BATON_PREFILL_WORKER_SERVICE_H_

// A running prefill worker: the loop on its own thread and the gRPC service through which decode
// ranks call it and routers watch it. main (or embedded.cc) gives it a runner and a transport,
// registers service() with a gRPC server, and drains it before it goes.

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "model/runner.h"
#include "prefill_worker/loop.h"
#include "scheduler/messages.h"
#include "transport/kv_transport.h"
#include "wire/worker.h"

namespace baton::prefill_worker {

struct PrefillWorkerOptions {
  scheduler::WorkerIdentity identity;  // without an instance: see wire::Worker::Announce
  PrefillLoopOptions loop;
  size_t inbox_capacity = 4096;
  // > 0: the transport is polled at least this often. For one that holds messages back without
  // waking the loop when they are due (transport/faulty with a clock).
  Duration poll_interval;
};

class PrefillWorker : public wire::Worker {
 public:
  // The references must outlive the worker.
  // Fails as PrefillLoop::Create does.
  static absl::StatusOr<std::unique_ptr<PrefillWorker>> Start(
      const PrefillWorkerOptions& options, Clock& clock, std::unique_ptr<model::Runner> runner,
      std::unique_ptr<transport::KvTransport> transport, const PrefillMetrics& metrics,
      const Log& log);

  // What the worker last did, for readiness and the like. Any thread.
  virtual scheduler::PrefillReport last_report() const = 0;
};

}  // namespace baton::prefill_worker

#endif  // BATON_PREFILL_WORKER_SERVICE_H_
