// baton prefill: a prefill worker as its own process.

#include <ostream>

#include "base/status_macros.h"
#include "server/commands.h"
#include "server/exit_code.h"
#include "server/main_model.h"
#include "server/main_roles.h"

namespace baton::server {
namespace {

absl::StatusOr<int> Prefill(const CommandContext& context) {
  TerminationSignals signals;
  const Config& config = context.config();
  const auto clock = std::make_shared<MonotonicClock>();
  BATON_ASSIGN_OR_RETURN(const ModelFiles files, LoadModelFiles(config));
  BATON_ASSIGN_OR_RETURN(const model::RunnerOptions options,
                         RunnerOptionsFor(config, RunnerRole::kPrefill, *files.model));
  BATON_ASSIGN_OR_RETURN(std::unique_ptr<model::Runner> runner,
                         model::CreateRunner(files.model, options));
  BATON_ASSIGN_OR_RETURN(std::unique_ptr<transport::KvTransport> transport,
                         MakeProcessTransport(config, clock, context.log));
  Metrics metrics(MetricsOptionsFor(config, files.description));
  BATON_ASSIGN_OR_RETURN(const std::unique_ptr<prefill_worker::PrefillWorker> worker,
                         prefill_worker::PrefillWorker::Start(
                             {.identity = IdentityFor("prefill", config.prefill().address(), config,
                                                      files.description),
                              .loop = PrefillLoopOptionsFor(config),
                              .poll_interval = FaultPollInterval(config)},
                             *clock, std::move(runner), WithFaults(config, std::move(transport)),
                             metrics.prefill(), context.log));

  RoleProcess role;
  role.grpc_address = config.prefill().address();
  role.service = worker->service();
  role.service_name = "baton.v1.PrefillWorker";
  role.not_ready = [&] { return worker->last_report().draining ? "draining" : ""; };
  role.drain = {[&] { worker->Drain(); }, [&] { return worker->drained(); }};
  role.close_streams = [&] { worker->CloseStreams(); };
  role.started = [&](int grpc_port, int http_port) {
    context.err << "prefill worker of " << files.description.name << ": gRPC port " << grpc_port
                << ", HTTP port " << http_port << ", " << options.total_pages << " KV pages of "
                << options.page_tokens << " tokens, chunks of " << config.prefill().chunk_tokens()
                << std::endl;
  };
  return RunRole(context, role, metrics, signals, *clock);
}

}  // namespace

Command PrefillCommand() {
  return {.name = "prefill",
          .summary = "a prefill worker as its own process",
          .description =
              "Runs prompts and hands their KV pages to decode workers, until SIGTERM; then open "
              "calls finish, and it exits 0.",
          .flags = {PortFileFlag()},
          .config = {"model", "prefill", "handoff", "kernels", "drain", "log", "metrics",
                     "server.http_address"},
          .run = [](const CommandContext& context) { return ExitCode(context, Prefill(context)); }};
}

}  // namespace baton::server
