#ifndef BATON_SERVER_ROUTER_SERVER_H_
#define BATON_SERVER_ROUTER_SERVER_H_

// A running router: the front-end loop on its own thread, with the client streams on one side of it
// and the connections to workers on the other. main (or embedded.cc) registers service() with a
// gRPC server, and drains the router before it goes.

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "model/tokenizer.h"
#include "scheduler/router.h"
#include "server/completion_service.h"
#include "server/frontend.h"
#include "server/model_description.h"
#include "server/worker_client.h"

namespace grpc {
class Service;
}  // namespace grpc

namespace baton::server {

struct RouterServerOptions {
  FrontendOptions frontend;
  scheduler::RouterOptions router;
  // Where workers are; see server/worker_client.h.
  std::vector<std::string> decode_workers;
  std::vector<std::string> prefill_workers;
  Duration dns_interval = Duration::Seconds(5);
  std::shared_ptr<NameResolver> resolver;
  size_t inbox_capacity = 8192;
  std::string version;
  std::string revision;
};

// Why a router that shows this takes no requests; empty when it does.
std::string NotReadyReason(const ServerSummary& summary);

class RouterServer {
 public:
  // Begins to connect to the workers. References must outlive the server.
  static std::unique_ptr<RouterServer> Start(const RouterServerOptions& options,
                                             const ModelDescription& model,
                                             const model::Tokenizer& tokenizer, Clock& clock,
                                             const wire::ChannelFactory& channels, Metrics& metrics,
                                             const Log& log);

  // Ends loop and connections. The gRPC server must be shut down by now.
  virtual ~RouterServer() = default;

  // For a gRPC server that is shut down before the router goes.
  virtual grpc::Service* service() = 0;

  // `on_ready` is told at once and then, on the loop's thread, whenever readiness changes: a decode
  // rank and a prefill worker are connected, and no drain was asked for.
  virtual void WatchReady(std::function<void(bool)> on_ready) = 0;

  // New requests are refused with UNAVAILABLE; running ones finish. Any thread.
  virtual void Drain() = 0;
  // After Drain: no request is queued or running.
  virtual bool drained() const = 0;

  virtual ServerSummary Summary() const = 0;
};

}  // namespace baton::server

#endif  // BATON_SERVER_ROUTER_SERVER_H_
