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
  BATON_ASSIGN_OR_RETURN(const std::unique_ptr<decode_worker::DecodeWorker> worker,
                         decode_worker::DecodeWorker::Start(
                             {.identity = IdentityFor("decode", config, model),
                              .loop = DecodeLoopOptionsFor(config, model)},
                             *clock, std::move(parts.runner), std::move(parts.transport),
                             MakePeerChannel, metrics.decode(), context.log));

  RoleProcess role = WorkerProcess(*worker, parts, address, "baton.v1.DecodeWorker");
  if (parts.ranks() > 1) {
    role.drain.begin = [&] {
      parts.passes->Restart();
      worker->Drain();
    };
    role.drain.drained = [&] {
      return worker->drained() && (parts.passes->paused() || !parts.collectives->health().ok());
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
  return {.name = "decode",
          .summary = "a decode worker, or a rank of one, as its own process",
          .description =
              "Takes requests from routers, has their prompts computed by prefill workers and "
              "streams the tokens, until SIGTERM; then running requests finish, and it exits 0. "
              "With --decode.ranks it is one of several that share the experts, and finds the "
              "others at --decode.group_addresses; when one of them is lost, it exits 1.",
          .flags = {PortFileFlag()},
          .config = {"model", "decode", "handoff", "kernels", "group", "drain", "log", "metrics",
                     "server.http_address"},
          .run = [](const CommandContext& context) { return ExitCode(context, Decode(context)); }};
}

}  // namespace baton::server
