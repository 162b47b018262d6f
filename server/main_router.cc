// baton router: accepts requests and gives them to worker processes.

#include <unistd.h>

#include <ostream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "server/commands.h"
#include "server/exit_code.h"
#include "server/grpc_host.h"
#include "server/main_model.h"
#include "server/main_roles.h"

namespace baton::server {
namespace {

absl::StatusOr<int> Route(const CommandContext& context) {
  TerminationSignals signals;
  const Config& config = context.config();
  bool usage = false;
  for (const auto& [field, workers] :
       {std::pair{"router.prefill_workers", &config.router().prefill_workers()},
        {"router.decode_workers", &config.router().decode_workers()}}) {
    if (!workers->empty()) continue;
    context.err << "error: " << field << ": a router needs at least one; --" << field
                << "=HOST:PORT or dns:HOST:PORT, or a list in the configuration file" << std::endl;
    usage = true;
  }
  if (usage) return kExitUsage;
  MonotonicClock clock;
  // JSON files only: weights are the workers' affair.
  BATON_ASSIGN_OR_RETURN(const std::string directory, ModelDirectory(config));
  BATON_ASSIGN_OR_RETURN(const model::ModelManifest manifest, model::ReadModelManifest(directory));
  BATON_ASSIGN_OR_RETURN(const std::unique_ptr<const model::Tokenizer> tokenizer,
                         model::Tokenizer::Load(directory));
  const ModelDescription description = DescribeModel(config, manifest);
  Metrics metrics(MetricsOptionsFor(config, description));
  RouterServerOptions options = RouterServerOptionsFor(config);
  options.router.identity = IdentityFor("router", config, description);
  options.router.identity.page_tokens = 0;  // as the workers have it
  // Workers are called at once, before there is a port.
  options.router.identity.instance = absl::StrCat(HostName(), " process ", getpid());
  const std::unique_ptr<RouterServer> router = RouterServer::Start(
      options, description, *tokenizer, clock,
      PeerChannels(Duration::Millis(config.server().peer_timeout_ms())), metrics, context.log);

  RoleProcess role;
  role.grpc_address = config.server().grpc_address();
  role.services = {router->service()};
  role.service_name = kCompletionServiceName;
  role.not_ready = [&] { return NotReadyReason(router->Summary()); };
  role.drain = {[&] { router->Drain(); }, [&] { return router->drained(); }};
  role.watch_ready = [&](std::function<void(bool)> set) { router->WatchReady(std::move(set)); };
  role.started = [&](int grpc_port, int http_port) {
    context.err << "router of " << description.name << ": gRPC port " << grpc_port << ", HTTP port "
                << http_port
                << "; prefill workers: " << absl::StrJoin(options.prefill_workers, ", ")
                << "; decode workers: " << absl::StrJoin(options.decode_workers, ", ") << std::endl;
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
              "and it exits 0. Computes nothing itself; of the checkpoint it reads config.json, "
              "generation_config.json, tokenizer.json and tokenizer_config.json, no weights.",
          .flags = {PortFileFlag()},
          .config = {"model.path", "model.name", "server", "router", "decode.reserve_output_tokens",
                     "drain", "log", "metrics"},
          .run = [](const CommandContext& context) { return ExitCode(context, Route(context)); }};
}

}  // namespace baton::server
