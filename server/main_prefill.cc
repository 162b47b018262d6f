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
  const std::string& address = config.prefill().address();
  BATON_ASSIGN_OR_RETURN(WorkerParts parts, MakeWorkerParts(config, RunnerRole::kPrefill, address,
                                                            clock, context.log));
  const ModelDescription& model = parts.files.description;
  Metrics metrics(MetricsOptionsFor(config, model));
  BATON_ASSIGN_OR_RETURN(
      const std::unique_ptr<prefill_worker::PrefillWorker> worker,
      prefill_worker::PrefillWorker::Start({.identity = IdentityFor("prefill", config, model),
                                            .loop = PrefillLoopOptionsFor(config),
                                            .poll_interval = FaultPollInterval(config)},
                                           *clock, std::move(parts.runner),
                                           WithFaults(config, std::move(parts.transport)),
                                           metrics.prefill(), context.log));

  RoleProcess role = WorkerProcess(*worker, address, "baton.v1.PrefillWorker");
  role.started = [&](int grpc_port, int http_port) {
    context.err << "prefill worker of " << model.name << ": gRPC port " << grpc_port
                << ", HTTP port " << http_port << ", " << parts.options.total_pages
                << " KV pages of " << parts.options.page_tokens << " tokens, chunks of "
                << config.prefill().chunk_tokens() << std::endl;
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
          .config = {"model", "prefill", "handoff", "kernels", "group", "drain", "log", "metrics",
                     "server.http_address"},
          .run = [](const CommandContext& context) { return ExitCode(context, Prefill(context)); }};
}

}  // namespace baton::server
