#ifndef BATON_SERVER_MAIN_ROLES_H_
#define BATON_SERVER_MAIN_ROLES_H_

// From the configuration to the options of each role: what serve, router, prefill, decode and bench
// have in common. Part of main, like embedded.cc: sees workers, model and transports.

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/config.h"
#include "base/log.h"
#include "base/metrics.h"
#include "decode_worker/service.h"
#include "model/loaded_model.h"
#include "model/tokenizer.h"
#include "prefill_worker/service.h"
#include "server/cli.h"
#include "server/embedded.h"
#include "server/main_model.h"
#include "server/model_description.h"
#include "server/router_server.h"
#include "server/termination.h"
#include "transport/collectives.h"
#include "transport/kv_transport.h"
#include "wire/worker.h"

namespace grpc {
class Service;
}  // namespace grpc

namespace baton::server {

// A model as every role loads it.
struct ModelFiles {
  std::shared_ptr<const model::LoadedModel> model;
  ModelDescription description;
};
absl::StatusOr<ModelFiles> LoadModelFiles(const Config& config);

// Without an instance: a worker has its name, host:port, when its port is bound.
scheduler::WorkerIdentity IdentityFor(const std::string& role, const Config& config,
                                      const ModelDescription& model);
std::string HostName();

prefill_worker::PrefillLoopOptions PrefillLoopOptionsFor(const Config& config);
decode_worker::DecodeLoopOptions DecodeLoopOptionsFor(const Config& config,
                                                      const ModelDescription& model);
RouterServerOptions RouterServerOptionsFor(const Config& config);
MetricsOptions MetricsOptionsFor(const Config& config, const ModelDescription& model);

// What a worker process computes with and ships by.
struct WorkerParts {
  ModelFiles files;
  model::RunnerOptions options;
  std::unique_ptr<transport::Collectives> collectives;  // outlives the runner; may be null
  std::unique_ptr<model::Runner> runner;
  std::unique_ptr<transport::KvTransport> transport;
};
// `address`: where the worker listens for streams.
absl::StatusOr<WorkerParts> MakeWorkerParts(const Config& config, RunnerRole role,
                                            const std::string& address,
                                            std::shared_ptr<Clock> clock, const Log& log);

// The transport of a worker process that listens for streams at `address`. Where handoff.ucx says
// nothing else, it listens where the worker does: on that IP address, or everywhere.
absl::StatusOr<std::unique_ptr<transport::KvTransport>> MakeProcessTransport(
    const Config& config, const std::string& address, std::shared_ptr<Clock> clock, const Log& log);

// The IP address in `address` (host:port); empty when its host is a name, or every interface.
std::string SpecificIp(const std::string& address);

// `transport`, harmed as handoff.faults says: for the side that sends.
std::unique_ptr<transport::KvTransport> WithFaults(
    const Config& config, std::unique_ptr<transport::KvTransport> transport);
// How often a prefill worker polls a transport that may hold messages back; zero without faults.
Duration FaultPollInterval(const Config& config);

// Everything that Embedded needs, with the ranks of both workers.
absl::StatusOr<EmbeddedParts> MakeEmbeddedParts(const Config& config, const ModelFiles& files);

// Writes "grpc=PORT\nhttp=PORT\n" to `path` in one step, for whoever waits for the file.
absl::Status WritePortFile(const std::string& path, int grpc_port, int http_port);
// The flag that names it.
CommandFlag PortFileFlag();

// The ways of a role that is started: serves `service` and the operator's pages until it was told
// to end and has drained. Returns the exit code.
struct RoleProcess {
  std::string grpc_address;
  grpc::Service* service = nullptr;
  std::string service_name;                // for the health service
  std::function<std::string()> not_ready;  // the reason, or empty
  DrainSteps drain;
  std::function<void()> close_streams;
  // Told the gRPC port as soon as it is bound (may be empty), and both ports.
  std::function<void(int grpc_port)> bound;
  std::function<void(int grpc_port, int http_port)> started;
  // Given a function that sets the service's health; workers are serving from the start.
  std::function<void(std::function<void(bool)>)> watch_ready;
};
// The process of a worker, all but `started`.
RoleProcess WorkerProcess(wire::Worker& worker, const std::string& address,
                          const std::string& service_name);
absl::StatusOr<int> RunRole(const CommandContext& context, const RoleProcess& role,
                            const Metrics& metrics, TerminationSignals& signals, Clock& clock);

}  // namespace baton::server

#endif  // BATON_SERVER_MAIN_ROLES_H_
