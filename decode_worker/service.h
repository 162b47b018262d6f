#ifndef BATON_DECODE_WORKER_SERVICE_H_
#define BATON_DECODE_WORKER_SERVICE_H_

// A running decode rank: the loop on its own thread, the gRPC service through which routers reach
// it, and its streams to prefill workers. main (or embedded.cc) gives it a runner and a transport,
// registers service() with a gRPC server, and drains it before it goes.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "decode_worker/loop.h"
#include "model/runner.h"
#include "scheduler/messages.h"
#include "transport/kv_transport.h"

namespace grpc {
class Channel;
class Service;
}  // namespace grpc

namespace baton::decode_worker {

// Makes the channel to a prefill worker's address.
using ChannelFactory = std::function<std::shared_ptr<grpc::Channel>(const std::string& address)>;

struct DecodeWorkerOptions {
  scheduler::WorkerIdentity identity;
  DecodeLoopOptions loop;
  size_t inbox_capacity = 4096;
  int32_t max_prefill_workers = 1024;  // addresses that streams are kept for
};

class DecodeWorker {
 public:
  // The references must outlive the worker.
  // Fails as DecodeLoop::Create does.
  static absl::StatusOr<std::unique_ptr<DecodeWorker>> Start(
      const DecodeWorkerOptions& options, Clock& clock, std::unique_ptr<model::Runner> runner,
      std::unique_ptr<transport::KvTransport> transport, ChannelFactory channels,
      const DecodeMetrics& metrics, const Log& log);

  // Ends the loop (after the step that it is in). The gRPC server must be shut down by now.
  virtual ~DecodeWorker() = default;

  // For a gRPC server that is shut down before the worker goes.
  virtual grpc::Service* service() = 0;

  // No new work; what runs may finish. Any thread.
  virtual void Drain() = 0;
  // After Drain: nothing holds pages any more and everything was said to the routers.
  virtual bool drained() const = 0;

  // Ends all streams once what is queued on them was written, so that the gRPC server can shut
  // down. Any thread.
  virtual void CloseStreams() = 0;

  // What the rank last did, for readiness and the like. Any thread.
  virtual scheduler::DecodeReport last_report() const = 0;
};

}  // namespace baton::decode_worker

#endif  // BATON_DECODE_WORKER_SERVICE_H_
