// baton router: accepts requests and gives them to worker processes.

#include <ostream>

#include "base/status_macros.h"
#include "server/commands.h"
#include "server/exit_code.h"
#include "server/grpc_host.h"
#include "server/main_roles.h"

namespace baton::server {
namespace {

absl::StatusOr<int> Route(const CommandContext& context) {
  TerminationSignals signals;
  const Config& config = context.config();
  if (config.router().decode_workers().empty() || config.router().prefill_workers().empty()) {
    return absl::InvalidArgumentError(
        "router.decode_workers and router.prefill_workers each need at least one host:port");
  }
  MonotonicClock clock;
  BATON_ASSIGN_OR_RETURN(const ModelFiles files, LoadModelFiles(config));
  BATON_ASSIGN_OR_RETURN(const std::unique_ptr<const model::Tokenizer> tokenizer,
                         model::Tokenizer::Load(files.model->directory));
  Metrics metrics(MetricsOptionsFor(config, files.description));
  RouterServerOptions options = RouterServerOptionsFor(config);
  options.router.identity =
      IdentityFor("router", config.server().grpc_address(), config, files.description);
  const std::unique_ptr<RouterServer> router = RouterServer::Start(
      options, files.description, *tokenizer, clock, MakePeerChannel, metrics, context.log);

  RoleProcess role;
  role.grpc_address = config.server().grpc_address();
  role.service = router->service();
  role.service_name = kCompletionServiceName;
  role.not_ready = [&] { return NotReadyReason(router->Summary()); };
  role.drain = {[&] { router->Drain(); }, [&] { return router->drained(); }};
  role.watch_ready = [&](std::function<void(bool)> set) { router->WatchReady(std::move(set)); };
  role.started = [&](int grpc_port, int http_port) {
    context.err << "router of " << files.description.name << ": gRPC port " << grpc_port
                << ", HTTP port " << http_port << ", " << options.prefill_workers.size()
                << " prefill and " << options.decode_workers.size() << " decode workers"
                << std::endl;
  };
  return RunRole(context, role, metrics, signals, clock);
}

}  // namespace

Command RouterCommand() {
  return {.name = "router",
          .summary = "the front end of a cluster: clients on one side, workers on the other",
          .description =
              "Accepts client requests (gRPC), gives them to the configured prefill and decode "
              "workers and streams their tokens back, until SIGTERM; then running requests finish, "
              "and it exits 0. Computes nothing itself; of the model it reads the tokenizer, the "
              "configuration and the tensors' headers.",
          .flags = {PortFileFlag()},
          .config = {"model", "server", "router", "decode.reserve_output_tokens", "drain", "log",
                     "metrics"},
          .run = [](const CommandContext& context) { return ExitCode(context, Route(context)); }};
}

}  // namespace baton::server
