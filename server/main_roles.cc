#include "server/main_roles.h"

#include <arpa/inet.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/build_info.h"
#include "base/host_port.h"
#include "base/status_macros.h"
#include "server/main_model.h"
#include "server/operator_pages.h"
#include "transport/faulty/faulty_transport.h"
#include "transport/nccl/nccl_transport.h"
#include "transport/ucx/ucx_transport.h"

namespace baton::server {
namespace {

constexpr uint64_t kKiB = uint64_t{1} << 10;
constexpr uint64_t kMiB = uint64_t{1} << 20;
// After a drain nothing runs: this is for the last bytes on their way to clients.
constexpr Duration kShutdownGrace = Duration::Seconds(2);

uint64_t RandomBits() {
  std::random_device random;
  return uint64_t{random()} << 32 | random();
}

// What handoff.* says; but for the GPU, where to listen, and the log.
transport::NcclTransportOptions NcclOptionsFor(const Config& config, RunnerRole role) {
  const v1::Nccl& nccl = config.handoff().nccl();
  transport::NcclTransportOptions options;
  options.net_devices = config.handoff().ucx().net_devices();
  options.listen_port = static_cast<uint16_t>(config.handoff().ucx().listen_port());
  if (nccl.memory() == "gpu") options.memory = transport::PayloadMemory::kGpu;
  if (nccl.memory() == "pinned") options.memory = transport::PayloadMemory::kPinned;
  options.max_message_bytes = static_cast<uint64_t>(config.handoff().max_message_kb()) * kKiB;
  options.staging_bytes =
      role == RunnerRole::kDecode ? static_cast<uint64_t>(nccl.staging_mb()) * kMiB : 0;
  options.coalesce_bytes = static_cast<uint64_t>(nccl.coalesce_kb()) * kKiB;
  options.coalesce_delay = Duration::Millis(nccl.coalesce_ms());
  options.max_communicators = static_cast<uint32_t>(nccl.max_communicators());
  options.max_concurrent_transfers = static_cast<uint32_t>(nccl.max_concurrent());
  options.max_ctas = nccl.max_ctas();
  options.connect_timeout = Duration::Millis(nccl.connect_timeout_ms());
  options.stall_timeout = Duration::Millis(nccl.stall_timeout_ms());
  options.transfer_timeout = Duration::Millis(nccl.transfer_timeout_ms());
  options.one_sided = nccl.one_sided();
  return options;
}

}  // namespace

std::function<void(int64_t, int64_t)> LogUpload(const Log& log) {
  return [log, told = int64_t{0}](int64_t done, int64_t total) mutable {
    if (done < total && (done - told) * 10 < total) return;
    told = done;
    log.Info("weights are copied to the GPU", {{"done_bytes", done}, {"total_bytes", total}});
  };
}

absl::StatusOr<ModelFiles> LoadModelFiles(const Config& config) {
  ModelFiles files;
  BATON_ASSIGN_OR_RETURN(const std::string directory, ModelDirectory(config));
  BATON_ASSIGN_OR_RETURN(files.model, model::LoadModel(directory));
  files.description = DescribeModel(config, *files.model);
  return files;
}

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof name - 1) == 0 ? name : "localhost";
}

scheduler::WorkerIdentity IdentityFor(const std::string& role, const Config& config,
                                      const ModelDescription& model) {
  scheduler::WorkerIdentity identity;
  identity.role = role;
  identity.incarnation = RandomBits() | 1;
  identity.model_name = model.name;
  identity.model_hash = model.hash;
  identity.kv_format = model.kv_format;
  identity.page_tokens = config.model().page_tokens();
  identity.layers = model.layers;
  identity.revision = std::string(Revision());
  if (role == "decode") identity.expert_dispatch = config.decode().expert_dispatch();
  return identity;
}

prefill_worker::PrefillLoopOptions PrefillLoopOptionsFor(const Config& config) {
  prefill_worker::PrefillLoopOptions options;
  options.planner.slots = config.prefill().max_requests();
  options.planner.chunk_tokens = config.prefill().chunk_tokens();
  options.planner.handoff_timeout = Duration::Millis(config.handoff().timeout_ms());
  options.planner.prefix_cache = config.prefill().prefix_cache();
  options.handoff.staging_bytes = static_cast<uint64_t>(config.prefill().staging_mb()) * kMiB;
  options.handoff.max_message_bytes =
      static_cast<uint64_t>(config.handoff().max_message_kb()) * kKiB;
  return options;
}

decode_worker::DecodeLoopOptions DecodeLoopOptionsFor(const Config& config,
                                                      const ModelDescription& model) {
  decode_worker::DecodeLoopOptions options;
  scheduler::DecodePlannerOptions& planner = options.planner;
  planner.first_epoch = RandomBits() >> 1 | 1;
  planner.eos_token_ids = model.eos_token_ids;
  planner.max_landings = config.decode().max_landings();
  planner.max_sequences = config.decode().max_sequences();
  planner.max_batch_rows = config.decode().max_batch_rows();
  planner.reserve_output_tokens = config.decode().reserve_output_tokens();
  planner.prefill_timeout = Duration::Millis(config.decode().prefill_timeout_ms());
  planner.handoff_timeout = Duration::Millis(config.handoff().timeout_ms());
  planner.prefix_cache = config.decode().prefix_cache();
  planner.reuse_generated = config.decode().reuse_generated();
  return options;
}

RouterServerOptions RouterServerOptionsFor(const Config& config) {
  RouterServerOptions options;
  const v1::Router& router = config.router();
  options.router.max_queued = router.max_queue();
  options.router.max_attempts = router.max_attempts();
  options.router.reserve_output_tokens = config.decode().reserve_output_tokens();
  options.router.no_workers_timeout = Duration::Millis(router.no_worker_timeout_ms());
  options.router.retry_after = Duration::Millis(router.retry_after_ms());
  options.frontend.limits.default_max_tokens = router.default_max_tokens();
  options.frontend.limits.max_prompt_tokens = router.max_prompt_tokens();
  options.frontend.default_duration = Duration::Millis(router.default_deadline_ms());
  options.frontend.retry_after = Duration::Millis(router.retry_after_ms());
  // The router itself bounds the queue; this bounds what the front ends keep beside it.
  options.frontend.max_open_requests = router.max_queue() + 8192;
  options.decode_workers.assign(router.decode_workers().begin(), router.decode_workers().end());
  options.prefill_workers.assign(router.prefill_workers().begin(), router.prefill_workers().end());
  options.dns_interval = Duration::Millis(router.dns_interval_ms());
  options.resolver = MakeDnsResolver(router.dns_server());
  options.version = std::string(Version());
  options.revision = std::string(Revision());
  return options;
}

MetricsOptions MetricsOptionsFor(const Config& config, const ModelDescription& model) {
  return {.version = std::string(Version()),
          .revision = std::string(Revision()),
          .model_name = model.name,
          .kv_format = model.kv_format,
          .vllm_aliases = config.metrics().vllm_aliases()};
}

absl::StatusOr<WorkerParts> MakeWorkerParts(const Config& config, RunnerRole role,
                                            const ModelFiles& files, const std::string& address,
                                            std::shared_ptr<Clock> clock,
                                            TerminationSignals& signals, const Log& log) {
  WorkerParts parts;
  BATON_ASSIGN_OR_RETURN(parts.rank, RankOfProcess(config, role, HostName()));
  BATON_ASSIGN_OR_RETURN(parts.options, RunnerOptionsFor(config, role, *files.model));
  parts.options.upload_progress = LogUpload(log);
  BATON_ASSIGN_OR_RETURN(parts.place, GpuPlaceOfProcess(config, role, parts.rank, parts.options));
  const auto make_transport = [&]() -> absl::Status {
    BATON_ASSIGN_OR_RETURN(
        parts.transport, MakeProcessTransport(config, role, parts.options.device, parts.place.get(),
                                              address, clock, log));
    return absl::OkStatus();
  };
  // Early, as its mistakes are cheap to find; but what is wrong with a GPU its runner says best.
  const bool on_gpu = parts.options.device.backend == kernels::BackendKind::kCuda;
  if (!on_gpu) BATON_RETURN_IF_ERROR(make_transport());
  model::RankGroup& group = parts.options.group;
  if (RanksOf(config, role) == 1) {
    parts.collectives = GroupOfOne(parts.options);
  } else if (role == RunnerRole::kPrefill) {
    BATON_ASSIGN_OR_RETURN(parts.collectives,
                           JoinPrefillGroup(config, parts.rank, files.description.hash,
                                            parts.options, parts.place.get(), clock, signals, log));
  } else {
    BATON_ASSIGN_OR_RETURN(parts.group,
                           DecodeProcessGroup(config, files.description, parts.rank, parts.options,
                                              parts.place.get(), clock, log));
  }
  group.stepped = parts.group != nullptr;
  group.collectives = group.stepped ? parts.group->seat.get() : parts.collectives.get();
  BATON_ASSIGN_OR_RETURN(auto runner, model::CreateRunner(files.model, parts.options));
  if (on_gpu) BATON_RETURN_IF_ERROR(make_transport());
  parts.passes = std::make_unique<PassWatch>(*clock);
  parts.runner = parts.passes->Watch(std::move(runner));
  return parts;
}

std::string RankText(const Config& config, RunnerRole role, const WorkerParts& parts) {
  const int32_t ranks = RanksOf(config, role);
  return ranks == 1 ? "" : absl::StrCat(", rank ", parts.rank, " of ", ranks);
}

RoleProcess WorkerProcess(wire::Worker& worker, const WorkerParts& parts,
                          const std::string& address, const std::string& service_name) {
  RoleProcess role;
  role.grpc_address = address;
  role.min_ping_interval = kPeerPingInterval;
  role.services = {worker.service()};
  role.service_name = service_name;
  role.not_ready = [&worker] { return worker.draining() ? "draining" : ""; };
  role.drain.begin = [&worker] { worker.Drain(); };
  role.drain.drained = [&worker] { return worker.drained(); };
  role.close_streams = [&worker] { worker.CloseStreams(); };
  role.bound = [&worker](int port) { worker.Announce(absl::StrCat(HostName(), ":", port)); };
  if (parts.collectives != nullptr) {
    role.drain.health = [&parts] { return parts.collectives->health(); };
  }
  return role;
}

absl::StatusOr<std::unique_ptr<transport::KvTransport>> MakeProcessTransport(
    const Config& config, RunnerRole role, const kernels::DeviceOptions& device,
    const transport::GpuPlace* place, const std::string& address, std::shared_ptr<Clock> clock,
    const Log& log) {
  const bool on_gpu = device.backend == kernels::BackendKind::kCuda;
  std::string carrier = config.handoff().transport();
  if (carrier == "auto") carrier = on_gpu ? "nccl" : "ucx";
  if (carrier == "inproc") {
    return absl::InvalidArgumentError(
        "handoff.transport: inproc does not reach other processes; set it to auto or ucx");
  }
  if (carrier == "nccl" && !on_gpu) {
    return absl::InvalidArgumentError(
        "handoff.transport: nccl connects GPUs, and kernels.backend is not cuda; set it to auto or "
        "ucx");
  }
  const v1::Ucx& network = config.handoff().ucx();
  const std::string listen_ip =
      network.listen_ip().empty() ? SpecificIp(address) : network.listen_ip();
  if (carrier == "nccl") {
    transport::NcclTransportOptions options = NcclOptionsFor(config, role);
    options.gpu = device.gpu;
    if (place != nullptr) options.launches = place->launches();
    options.listen_ip = listen_ip;
    options.log = log;
    BATON_ASSIGN_OR_RETURN(std::unique_ptr<transport::KvTransport> nccl,
                           transport::CreateNcclTransport(options, std::move(clock)));
    return nccl;
  }
  transport::UcxOptions options;
  options.tls = network.tls();
  options.net_devices = network.net_devices();
  options.listen_ip = listen_ip;
  options.listen_port = static_cast<uint16_t>(network.listen_port());
  options.log = log;
  BATON_ASSIGN_OR_RETURN(std::unique_ptr<transport::KvTransport> ucx,
                         transport::CreateUcxTransport(options, std::move(clock)));
  return ucx;
}

std::string SpecificIp(const std::string& address) {
  const std::string host = SplitHostPort(address).value_or(HostPort{address, ""}).host;
  unsigned char bytes[sizeof(in6_addr)] = {};
  if (inet_pton(AF_INET, host.c_str(), bytes) != 1 &&
      inet_pton(AF_INET6, host.c_str(), bytes) != 1) {
    return std::string();
  }
  const bool unspecified =
      std::all_of(std::begin(bytes), std::end(bytes), [](unsigned char byte) { return byte == 0; });
  return unspecified ? std::string() : host;
}

std::unique_ptr<transport::KvTransport> WithFaults(
    const Config& config, std::unique_ptr<transport::KvTransport> transport) {
  const v1::Faults& faults = config.handoff().faults();
  transport::FaultyOptions options;
  options.seed = faults.seed();
  options.rates.drop = faults.drop();
  options.rates.delay = faults.delay();
  options.rates.reorder = faults.reorder();
  options.rates.duplicate = faults.duplicate();
  options.rates.corrupt_payload = faults.corrupt() / 2;
  options.rates.corrupt_header = faults.corrupt() / 2;
  options.rates.cut = faults.cut();
  options.clock = std::make_shared<MonotonicClock>();
  options.max_delay = Duration::Millis(faults.delay_ms());
  if (FaultPollInterval(config) == Duration()) return transport;
  return std::make_unique<transport::FaultyTransport>(std::move(transport), options);
}

Duration FaultPollInterval(const Config& config) {
  const v1::Faults& f = config.handoff().faults();
  const double sum = f.drop() + f.delay() + f.reorder() + f.duplicate() + f.corrupt() + f.cut();
  return sum > 0 ? Duration::Millis(1) : Duration();
}

absl::Status WritePortFile(const std::string& path, int grpc_port, int http_port) {
  if (path.empty()) return absl::OkStatus();
  const std::string partial = path + ".partial";
  {
    std::ofstream out(partial);
    out << "grpc=" << grpc_port << "\nhttp=" << http_port << "\n";
    if (!out.flush())
      return absl::UnavailableError("--port-file: cannot write " + path +
                                    "; does its folder exist?");
  }
  if (std::rename(partial.c_str(), path.c_str()) != 0) {
    return absl::UnavailableError("--port-file: cannot write " + path);
  }
  return absl::OkStatus();
}

CommandFlag PortFileFlag() {
  return {"port-file", FlagType::kText,
          "Once serving, write the bound ports here: lines grpc=PORT and http=PORT. For scripts "
          "that pass port 0.",
          ""};
}

OperatorHttp::OperatorHttp(const Metrics& metrics, const std::string& not_ready)
    : metrics_(metrics), not_ready_([not_ready] { return not_ready; }) {}

absl::Status OperatorHttp::Start(const std::string& address) {
  const auto not_ready = [this] {
    std::lock_guard<std::mutex> lock(mutex_);
    return not_ready_();
  };
  BATON_ASSIGN_OR_RETURN(
      server_, HttpServer::Start({.address = address}, OperatorPages(metrics_, not_ready)));
  return absl::OkStatus();
}

void OperatorHttp::SetNotReady(std::function<std::string()> not_ready) {
  std::lock_guard<std::mutex> lock(mutex_);
  not_ready_ = std::move(not_ready);
}

namespace {

// Serves until the end; what the role has given to `host` and `http` is taken back by the caller.
absl::StatusOr<int> Serve(const CommandContext& context, const RoleProcess& role,
                          TerminationSignals& signals, Clock& clock, GrpcHost* host,
                          OperatorHttp& http) {
  const int grpc_port = host == nullptr ? 0 : host->port();
  if (role.bound) role.bound(grpc_port);
  http.SetNotReady(role.not_ready);
  const auto set_health = [host, &role](bool ready) {
    if (host != nullptr) host->SetServing(role.service_name, ready);
  };
  if (role.watch_ready) {
    role.watch_ready(set_health);
  } else {
    set_health(true);
  }
  role.started(grpc_port, http.port());
  BATON_RETURN_IF_ERROR(WritePortFile(context.flags.text("port-file"), grpc_port, http.port()));
  DrainSteps steps = role.drain;
  steps.begin = [&] {
    if (!role.watch_ready) set_health(false);
    role.drain.begin();
  };
  const DrainResult drained = RunUntilTerminated(
      signals, steps, Duration::Millis(context.config().drain().timeout_ms()), clock, context.log);
  if (role.close_streams) role.close_streams();
  if (host != nullptr) {
    host->Shutdown(drained == DrainResult::kDrained ? kShutdownGrace : Duration());
  }
  return drained == DrainResult::kDrained ? kExitOk : kExitFailure;
}

}  // namespace

absl::StatusOr<int> RunRole(const CommandContext& context, const RoleProcess& role,
                            const Metrics& metrics, TerminationSignals& signals, Clock& clock,
                            OperatorHttp* http) {
  std::unique_ptr<GrpcHost> host;
  if (!role.services.empty()) {
    BATON_ASSIGN_OR_RETURN(host, GrpcHost::Start({.address = role.grpc_address,
                                                  .min_ping_interval = role.min_ping_interval},
                                                 role.services));
  }
  OperatorHttp own(metrics, "starting");
  if (http == nullptr) {
    BATON_RETURN_IF_ERROR(own.Start(context.config().server().http_address()));
    http = &own;
  }
  absl::StatusOr<int> code = Serve(context, role, signals, clock, host.get(), *http);
  // Host and pages outlive the role or go before it.
  if (role.watch_ready) role.watch_ready([](bool) {});
  http->SetNotReady([] { return "ending"; });
  return code;
}

}  // namespace baton::server
