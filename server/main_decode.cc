// baton decode: a decode worker as its own process.

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
  BATON_ASSIGN_OR_RETURN(const ModelFiles files, LoadModelFiles(config));
  BATON_ASSIGN_OR_RETURN(const model::RunnerOptions options,
                         RunnerOptionsFor(config, RunnerRole::kDecode, *files.model));
  BATON_ASSIGN_OR_RETURN(std::unique_ptr<model::Runner> runner,
                         model::CreateRunner(files.model, options));
  BATON_ASSIGN_OR_RETURN(std::unique_ptr<transport::KvTransport> transport,
                         MakeProcessTransport(config, clock, context.log));
  Metrics metrics(MetricsOptionsFor(config, files.description));
  BATON_ASSIGN_OR_RETURN(
      const std::unique_ptr<decode_worker::DecodeWorker> worker,
      decode_worker::DecodeWorker::Start(
          {.identity = IdentityFor("decode", config.decode().address(), config, files.description),
           .loop = DecodeLoopOptionsFor(config, files.description)},
          *clock, std::move(runner), std::move(transport), MakePeerChannel, metrics.decode(),
          context.log));

  RoleProcess role;
  role.grpc_address = config.decode().address();
  role.service = worker->service();
  role.service_name = "baton.v1.DecodeWorker";
  role.not_ready = [&] { return worker->last_report().draining ? "draining" : ""; };
  role.drain = {[&] { worker->Drain(); }, [&] { return worker->drained(); }};
  role.close_streams = [&] { worker->CloseStreams(); };
  role.started = [&](int grpc_port, int http_port) {
    context.err << "decode worker of " << files.description.name << ": gRPC port " << grpc_port
                << ", HTTP port " << http_port << ", " << options.total_pages << " KV pages of "
                << options.page_tokens << " tokens, " << config.decode().max_sequences()
                << " sequences" << std::endl;
  };
  return RunRole(context, role, metrics, signals, *clock);
}

}  // namespace

Command DecodeCommand() {
  return {.name = "decode",
          .summary = "a decode worker as its own process",
          .description =
              "Takes requests from routers, has their prompts computed by prefill workers and "
              "streams the tokens, until SIGTERM; then running requests finish, and it exits 0.",
          .flags = {PortFileFlag()},
          .config = {"model", "decode", "handoff", "kernels", "drain", "log", "metrics",
                     "server.http_address"},
          .run = [](const CommandContext& context) { return ExitCode(context, Decode(context)); }};
}

}  // namespace baton::server
