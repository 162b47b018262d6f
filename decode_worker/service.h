#ifndef BATON_DECODE_WORKER_SERVICE_H_
#define BATON_DECODE_WORKER_SERVICE_H_

// A running decode rank: the loop on its own thread, the gRPC service through which routers reach
// it, and its streams to prefill workers. main (or embedded.cc) gives it a runner and a transport,
// registers service() with a gRPC server, and drains it before it goes.

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "decode_worker/loop.h"
#include "model/runner.h"
#include "scheduler/messages.h"
#include "transport/kv_transport.h"
#include "wire/channel_factory.h"
#include "wire/worker.h"

namespace baton::decode_worker {

struct DecodeWorkerOptions {
  scheduler::WorkerIdentity identity;  // without an instance: see wire::Worker::Announce
  DecodeLoopOptions loop;
  size_t inbox_capacity = 4096;
  int32_t max_prefill_workers = 1024;  // addresses that streams are kept for
};

class DecodeWorker : public wire::Worker {
 public:
  // The references must outlive the worker; `channels` leads to the prefill workers' addresses.
  // Fails as DecodeLoop::Create does.
  static absl::StatusOr<std::unique_ptr<DecodeWorker>> Start(
      const DecodeWorkerOptions& options, Clock& clock, std::unique_ptr<model::Runner> runner,
      std::unique_ptr<transport::KvTransport> transport, wire::ChannelFactory channels,
      const DecodeMetrics& metrics, const Log& log);

  // What the rank last did, for readiness and the like. Any thread.
  virtual scheduler::DecodeReport last_report() const = 0;
};

}  // namespace baton::decode_worker

#endif  // BATON_DECODE_WORKER_SERVICE_H_
