#ifndef BATON_SERVER_MAIN_ROLES_H_
#define BATON_SERVER_MAIN_ROLES_H_

// From the configuration to the options of each role: what serve, router, prefill, decode and bench
// have in common. Part of main, like embedded.cc: sees workers, model and transports.

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/config.h"
#include "base/log.h"
#include "base/metrics.h"
#include "decode_worker/service.h"
#include "model/loaded_model.h"
#include "model/tokenizer.h"
#include "prefill_worker/service.h"
#include "server/cli.h"
#include "server/grpc_host.h"
#include "server/http_server.h"
#include "server/main_groups.h"
#include "server/main_model.h"
#include "server/model_description.h"
#include "server/router_server.h"
#include "server/termination.h"
#include "transport/collectives.h"
#include "transport/gpu_place.h"
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

// RunnerOptions::upload_progress that says in the log how far the weights are on their way to a
// GPU, ten times at most.
std::function<void(int64_t done, int64_t total)> LogUpload(const Log& log);

// Without an instance: a worker has its name, host:port, when its port is bound.
scheduler::WorkerIdentity IdentityFor(const std::string& role, const Config& config,
                                      const ModelDescription& model);
std::string HostName();

prefill_worker::PrefillLoopOptions PrefillLoopOptionsFor(const Config& config);
decode_worker::DecodeLoopOptions DecodeLoopOptionsFor(const Config& config,
                                                      const ModelDescription& model);
RouterServerOptions RouterServerOptionsFor(const Config& config);
MetricsOptions MetricsOptionsFor(const Config& config, const ModelDescription& model);

// What a worker process computes with and ships by: one rank of its group.
struct WorkerParts {
  int32_t rank = 0;
  model::RunnerOptions options;
  std::unique_ptr<transport::GpuPlace> place;  // of a rank of several on GPUs
  // What the ranks compute with; both outlive the runner. Of a prefill group; of a worker of one
  // rank that rounds rows on their way to experts; else null.
  std::unique_ptr<transport::Collectives> collectives;
  std::unique_ptr<decode_worker::DecodeGroup> group;  // of a decode group; else null
  std::unique_ptr<PassWatch> passes;                  // of the runner
  std::unique_ptr<model::Runner> runner;
  std::unique_ptr<transport::KvTransport> transport;

  int32_t ranks() const { return options.group.ranks(); }
};
// `address`: where the worker listens for streams. A rank of a prefill group waits until the others
// have come (JoinPrefillGroup).
absl::StatusOr<WorkerParts> MakeWorkerParts(const Config& config, RunnerRole role,
                                            const ModelFiles& files, const std::string& address,
                                            std::shared_ptr<Clock> clock,
                                            TerminationSignals& signals, const Log& log);

// The transport of a rank whose worker listens for streams at `address`. Where handoff.ucx says
// nothing else, it listens where the worker does: on that IP address, or everywhere. `device` is
// the rank's runner's; `place` where it is one of several on GPUs, else null.
absl::StatusOr<std::unique_ptr<transport::KvTransport>> MakeProcessTransport(
    const Config& config, RunnerRole role, const kernels::DeviceOptions& device,
    const transport::GpuPlace* place, const std::string& address, std::shared_ptr<Clock> clock,
    const Log& log);

// The IP address in `address` (host:port); empty when its host is a name, or every interface.
std::string SpecificIp(const std::string& address);

// `transport`, harmed as handoff.faults says: for the side that sends.
std::unique_ptr<transport::KvTransport> WithFaults(
    const Config& config, std::unique_ptr<transport::KvTransport> transport);
// How often a prefill worker polls a transport that may hold messages back; zero without faults.
Duration FaultPollInterval(const Config& config);

// Writes "grpc=PORT\nhttp=PORT\n" to `path` in one step, for whoever waits for the file.
absl::Status WritePortFile(const std::string& path, int grpc_port, int http_port);
// The flag that names it.
CommandFlag PortFileFlag();

// The operator's pages of a process, also while it is not ready yet. The metrics outlive it.
class OperatorHttp {
 public:
  OperatorHttp(const Metrics& metrics, const std::string& not_ready);
  absl::Status Start(const std::string& address);
  int port() const { return server_->port(); }
  // Called on the server's thread until it is replaced.
  void SetNotReady(std::function<std::string()> not_ready);

 private:
  const Metrics& metrics_;
  std::mutex mutex_;
  std::function<std::string()> not_ready_;  // guarded by mutex_
  std::unique_ptr<HttpServer> server_;
};

// The ways of a role that is started: serves `services` and the operator's pages until it was told
// to end and has drained. Returns the exit code.
struct RoleProcess {
  std::string grpc_address;
  Duration min_ping_interval = GrpcHostOptions().min_ping_interval;
  std::vector<grpc::Service*> services;    // none: no gRPC port either
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
// ", rank 2 of 4"; empty for a worker of one rank.
std::string RankText(const Config& config, RunnerRole role, const WorkerParts& parts);
// The process of a worker, all but `started`. The collectives, if there are any, are those of
// `parts`.
RoleProcess WorkerProcess(wire::Worker& worker, const WorkerParts& parts,
                          const std::string& address, const std::string& service_name);
// `http` is started; null: with the role.
absl::StatusOr<int> RunRole(const CommandContext& context, const RoleProcess& role,
                            const Metrics& metrics, TerminationSignals& signals, Clock& clock,
                            OperatorHttp* http = nullptr);

}  // namespace baton::server

#endif  // BATON_SERVER_MAIN_ROLES_H_
