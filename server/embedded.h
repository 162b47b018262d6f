#ifndef BATON_SERVER_EMBEDDED_H_
#define BATON_SERVER_EMBEDDED_H_

// All roles in one process: a router, a prefill worker and a decode worker, each rank of them with
// its own loop thread, that speak the same gRPC services with each other as separate processes do,
// over loopback connections. So there is one code path; only the wires differ.

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "decode_worker/loop.h"
#include "decode_worker/service.h"
#include "model/runner.h"
#include "model/tokenizer.h"
#include "prefill_worker/loop.h"
#include "server/model_description.h"
#include "server/router_server.h"
#include "transport/collectives.h"
#include "transport/gpu_place.h"
#include "transport/kv_transport.h"

namespace baton::server {

// What one rank computes with and ships by.
struct EmbeddedRank {
  std::unique_ptr<transport::GpuPlace> place;  // of a rank of several on GPUs
  // Prefill's, and of an only decode rank that rounds rows; null: the only one.
  std::unique_ptr<transport::Collectives> collectives;
  std::unique_ptr<decode_worker::DecodeGroup> group;  // decode's; null: the only one
  std::unique_ptr<model::Runner> runner;              // may use either
  std::unique_ptr<transport::KvTransport> transport;
};

struct EmbeddedParts {
  ModelDescription model;
  std::shared_ptr<const model::Tokenizer> tokenizer;
  // In the order of their numbers, at least one. The endpoints of all reach each other.
  std::vector<EmbeddedRank> prefill_ranks;
  std::vector<EmbeddedRank> decode_ranks;
  Duration group_timeout = transport::kDefaultCollectiveTimeout;  // of what the ranks do together
  prefill_worker::PrefillLoopOptions prefill;                     // of each rank, as decode below
  Duration prefill_poll_interval;                                 // see PrefillWorkerOptions
  decode_worker::DecodeLoopOptions decode;
  RouterServerOptions router;                // its identity and lists of workers are filled in here
  std::string grpc_address = "127.0.0.1:0";  // host:port
  std::string http_address;                  // host:port; empty: no HTTP
};

class Embedded {
 public:
  // References must outlive the object. Fails as the loops' Create do, and when an address cannot
  // be bound.
  static absl::StatusOr<std::unique_ptr<Embedded>> Start(EmbeddedParts parts, Clock& clock,
                                                         Metrics& metrics, const Log& log);
  virtual ~Embedded() = default;  // as Stop(0)

  virtual int grpc_port() const = 0;
  virtual int http_port() const = 0;
  // To the completion service, from this process; see GrpcHost::LoopbackChannel.
  virtual std::shared_ptr<grpc::Channel> Channel() = 0;

  virtual ServerSummary Summary() const = 0;
  // OK, or why the ranks of a worker have parted: it is to be ended then.
  virtual absl::Status health() const = 0;

  // No new work; what runs may finish. drained() is to be polled: it moves the drain on from the
  // router to the workers. One thread.
  virtual void Drain() = 0;
  virtual bool drained() = 0;

  // Ends everything; open calls have `grace` to finish.
  virtual void Stop(Duration grace) = 0;
};

}  // namespace baton::server

#endif  // BATON_SERVER_EMBEDDED_H_
