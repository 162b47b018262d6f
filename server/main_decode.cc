// baton decode: a decode worker's rank as its own process.

#include <ostream>

#include "base/status_macros.h"
#include "server/commands.h"
#include "server/exit_code.h"
#include "server/grpc_host.h"
#include "server/main_model.h"
#include "server/main_roles.h"

namespace baton::server {
namespace {

// Until the ranks of its group have found each other; the worker bounds the wait. CANCELLED when a
// signal came.
absl::Status AwaitGroup(const decode_worker::DecodeWorker& worker, TerminationSignals& signals) {
  constexpr Duration kLookAgain = Duration::Millis(20);
  while (!worker.joined()) {
    BATON_RETURN_IF_ERROR(worker.health());
    if (signals.WaitFor(kLookAgain)) {
      return absl::CancelledError("told to end while waiting for the other ranks");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<int> Decode(const CommandContext& context) {
  TerminationSignals signals;
  const Config& config = context.config();
  const auto clock = std::make_shared<MonotonicClock>();
  const std::string& address = config.decode().address();
  BATON_ASSIGN_OR_RETURN(const ModelFiles files, LoadModelFiles(config));
  const ModelDescription& model = files.description;
  Metrics metrics(MetricsOptionsFor(config, model));
  OperatorHttp http(metrics, "waiting for the other ranks");
  BATON_RETURN_IF_ERROR(http.Start(config.server().http_address()));
  absl::StatusOr<WorkerParts> made =
      MakeWorkerParts(config, RunnerRole::kDecode, files, address, clock, signals, context.log);
  if (absl::IsCancelled(made.status())) return kExitOk;
  BATON_ASSIGN_OR_RETURN(WorkerParts parts, std::move(made));
  if (parts.group != nullptr) parts.group->metrics = metrics.experts();
  BATON_ASSIGN_OR_RETURN(const std::unique_ptr<decode_worker::DecodeWorker> worker,
                         decode_worker::DecodeWorker::Start(
                             {.identity = IdentityFor("decode", config, model),
                              .loop = DecodeLoopOptionsFor(config, model)},
                             *clock, std::move(parts.runner), std::move(parts.transport),
                             PeerChannels(Duration::Millis(config.server().peer_timeout_ms())),
                             metrics.decode(), context.log, std::move(parts.group)));
  const absl::Status joined = AwaitGroup(*worker, signals);
  if (absl::IsCancelled(joined)) return kExitOk;
  BATON_RETURN_IF_ERROR(joined);

  RoleProcess role = WorkerProcess(*worker, parts, address, "baton.v1.DecodeWorker");
  bool told_to_end = false;
  if (parts.ranks() > 1) {
    role.services.push_back(worker->experts_service());
    role.not_ready = [&] {
      if (worker->draining()) return "draining";
      return worker->masked() ? "its experts are on their way" : "";
    };
    // The others of a group that ends may be gone before this rank is.
    role.drain.health = [&] {
      return told_to_end && worker->drained() ? absl::OkStatus() : worker->health();
    };
    role.drain.begin = [&] {
      told_to_end = true;
      parts.passes->Restart();
      worker->Drain();
    };
    role.drain.drained = [&] {
      return worker->drained() &&
             (worker->dispensable() || !worker->health().ok() || parts.passes->paused());
    };
  }
  role.started = [&](int grpc_port, int http_port) {
    context.err << "decode worker of " << model.name << RankText(config, RunnerRole::kDecode, parts)
                << ": gRPC port " << grpc_port << ", HTTP port " << http_port << ", "
                << parts.options.total_pages << " KV pages of " << parts.options.page_tokens
                << " tokens, " << config.decode().max_sequences() << " sequences" << std::endl;
  };
  return RunRole(context, role, metrics, signals, *clock, &http);
}

}  // namespace

Command DecodeCommand() {
  return {
      .name = "decode",
      .summary = "a decode worker, or a rank of one, as its own process",
      .description =
          "Takes requests from routers, has their prompts computed by prefill workers and "
          "streams the tokens, until SIGTERM; then running requests finish, and it exits 0. "
          "With --decode.ranks it is one of several that share the experts, and finds the "
          "others at --decode.group_addresses. Where every expert has a replica on another rank "
          "(--decode.redundant_experts, --decode.rebalance.survive_rank_loss), the group goes "
          "on without a rank that is lost, and takes it back in when it is started again; "
          "where not, all its processes exit 1.",
      .flags = {PortFileFlag()},
      .config = {"model", "decode", "handoff", "kernels", "group", "drain", "log", "metrics",
                 "server.http_address", "server.peer_timeout_ms"},
      .run = [](const CommandContext& context) { return ExitCode(context, Decode(context)); }};
}

}  // namespace baton::server
