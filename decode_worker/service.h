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
#include "decode_worker/expert_group.h"
#include "decode_worker/loop.h"
#include "model/runner.h"
#include "scheduler/messages.h"
#include "transport/group/group.h"
#include "transport/group/group_seat.h"
#include "transport/kv_transport.h"
#include "wire/channel_factory.h"
#include "wire/worker.h"

namespace baton::decode_worker {

// What a rank of a group of several needs beyond what it would alone. Its runner computes with the
// seat, with model::RankGroup::stepped.
struct DecodeGroup {
  std::unique_ptr<transport::GroupSeat> seat;
  std::unique_ptr<transport::Rendezvous> rendezvous;
  ExpertGroupOptions options;
  ExpertMetrics metrics;
};

struct DecodeWorkerOptions {
  scheduler::WorkerIdentity identity;  // without an instance: see wire::Worker::Announce
  DecodeLoopOptions loop;
  size_t inbox_capacity = 4096;
  int32_t max_prefill_workers = 1024;  // addresses that streams are kept for
};

class DecodeWorker : public wire::Worker {
 public:
  // The references must outlive the worker; `channels` leads to the prefill workers' addresses. A
  // rank of a `group` takes requests once all its ranks have found each other, which may be after
  // Start; where the group is lost it ends its streams, takes no more, and health() says why.
  // Fails as DecodeLoop::Create and ExpertGroup::Create do.
  static absl::StatusOr<std::unique_ptr<DecodeWorker>> Start(
      const DecodeWorkerOptions& options, Clock& clock, std::unique_ptr<model::Runner> runner,
      std::unique_ptr<transport::KvTransport> transport, wire::ChannelFactory channels,
      const DecodeMetrics& metrics, const Log& log, std::unique_ptr<DecodeGroup> group = nullptr);

  // What the rank last did, for readiness and the like. Any thread.
  virtual scheduler::DecodeReport last_report() const = 0;

  // Not OK, for good: this rank has left its group and serves nobody. Any thread.
  virtual absl::Status health() const = 0;

  // The ranks of its group have found each other, so that it takes requests; at once without a
  // group. Any thread.
  virtual bool joined() const = 0;
  // The other ranks of its group can go on without this one, as far as anybody knows: every expert
  // has a replica on them. False without a group. Any thread.
  virtual bool dispensable() const = 0;

  // It is in a group that has gone on without it and has not given it its experts back yet: other
  // ranks cannot be spared meanwhile. False without a group. Any thread.
  virtual bool masked() const = 0;

  // baton.v1.Experts, for any server of this process; null without a group. Lives as long as the
  // worker.
  virtual grpc::Service* experts_service() = 0;
};

}  // namespace baton::decode_worker

#endif  // BATON_DECODE_WORKER_SERVICE_H_
