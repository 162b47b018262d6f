// baton prefill: a prefill worker, or a rank of one, as its own process.

#include <optional>
#include <ostream>

#include "base/status_macros.h"
#include "prefill_worker/follower.h"
#include "prefill_worker/group_link.h"
#include "server/commands.h"
#include "server/exit_code.h"
#include "server/main_model.h"
#include "server/main_roles.h"

namespace baton::server {
namespace {

// What both kinds of ranks have.
struct PrefillProcess {
  const CommandContext& context;
  const ModelFiles& files;
  Metrics& metrics;
  OperatorHttp& http;
  TerminationSignals& signals;
  Clock& clock;
  WorkerParts& parts;
  prefill_worker::PrefillLoopOptions loop;

  const Config& config() const { return context.config(); }
  Duration group_timeout() const { return Duration::Millis(config().group().timeout_ms()); }
  absl::StatusOr<int> Run(const RoleProcess& role) {
    return RunRole(context, role, metrics, signals, clock, &http);
  }
  std::string Title() const {
    return "prefill worker of " + files.description.name +
           RankText(config(), RunnerRole::kPrefill, parts);
  }
};

// The only rank, or the leader of several.
absl::StatusOr<int> Lead(PrefillProcess process) {
  const Config& config = process.config();
  WorkerParts& parts = process.parts;
  std::optional<prefill_worker::GroupLink> link;
  if (parts.ranks() > 1) {
    link.emplace(*parts.collectives, process.group_timeout());
    process.loop.group = &*link;
  }
  const std::string& address = config.prefill().address();
  BATON_ASSIGN_OR_RETURN(const std::unique_ptr<prefill_worker::PrefillWorker> worker,
                         prefill_worker::PrefillWorker::Start(
                             {.identity = IdentityFor("prefill", config, process.files.description),
                              .loop = process.loop,
                              .poll_interval = FaultPollInterval(config)},
                             process.clock, std::move(parts.runner), std::move(parts.transport),
                             process.metrics.prefill(), process.context.log));
  RoleProcess role = WorkerProcess(*worker, parts, address, "baton.v1.PrefillWorker");
  role.started = [&](int grpc_port, int http_port) {
    process.context.err << process.Title() << ": gRPC port " << grpc_port << ", HTTP port "
                        << http_port << ", " << parts.options.total_pages << " KV pages of "
                        << parts.options.page_tokens << " tokens, chunks of "
                        << config.prefill().chunk_tokens() << std::endl;
  };
  return process.Run(role);
}

// Does what the leader says, until that one ends the group.
absl::StatusOr<int> Follow(PrefillProcess process) {
  const Config& config = process.config();
  WorkerParts& parts = process.parts;
  BATON_ASSIGN_OR_RETURN(
      const std::unique_ptr<prefill_worker::Follower> follower,
      prefill_worker::Follower::Start({.handoff = process.loop.handoff,
                                       .timeout = process.group_timeout(),
                                       .poll_interval = FaultPollInterval(config)},
                                      process.clock, std::move(parts.collectives),
                                      std::move(parts.runner), std::move(parts.transport),
                                      process.metrics.prefill_follower(), process.context.log));
  RoleProcess role;
  role.not_ready = [&] { return follower->over() ? "ending" : ""; };
  role.drain.begin = [&] { parts.passes->Restart(); };
  role.drain.drained = [&] { return follower->over() || parts.passes->paused(); };
  role.drain.over = [&] { return follower->over(); };
  role.drain.health = [&] { return follower->health(); };
  role.started = [&](int, int http_port) {
    process.context.err << process.Title() << ", which rank 0 leads: HTTP port " << http_port
                        << std::endl;
  };
  return process.Run(role);
}

absl::StatusOr<int> Prefill(const CommandContext& context) {
  TerminationSignals signals;
  const Config& config = context.config();
  const auto clock = std::make_shared<MonotonicClock>();
  BATON_ASSIGN_OR_RETURN(const ModelFiles files, LoadModelFiles(config));
  Metrics metrics(MetricsOptionsFor(config, files.description));
  OperatorHttp http(metrics, "waiting for the other ranks");
  BATON_RETURN_IF_ERROR(http.Start(config.server().http_address()));
  absl::StatusOr<WorkerParts> made = MakeWorkerParts(
      config, RunnerRole::kPrefill, files, config.prefill().address(), clock, signals, context.log);
  if (absl::IsCancelled(made.status())) return kExitOk;
  BATON_ASSIGN_OR_RETURN(WorkerParts parts, std::move(made));
  parts.transport = WithFaults(config, std::move(parts.transport));
  PrefillProcess process{context, files,  metrics, http,
                         signals, *clock, parts,   PrefillLoopOptionsFor(config)};
  process.loop.handoff.rank = parts.rank;
  process.loop.handoff.ranks = config.prefill().ranks();
  return parts.rank == 0 ? Lead(process) : Follow(process);
}

}  // namespace

Command PrefillCommand() {
  return {.name = "prefill",
          .summary = "a prefill worker, or a rank of one, as its own process",
          .description =
              "Runs prompts and hands their KV pages to decode workers, until SIGTERM; then open "
              "calls finish, and it exits 0. With --prefill.ranks it is one of several that "
              "compute each prompt together, and finds the others at --prefill.group_addresses: "
              "rank 0 is the one that decode workers and routers call. When a rank is lost, the "
              "others exit 1.",
          .flags = {PortFileFlag()},
          .config = {"model", "prefill", "handoff", "kernels", "group", "drain", "log", "metrics",
                     "server.http_address"},
          .run = [](const CommandContext& context) { return ExitCode(context, Prefill(context)); }};
}

}  // namespace baton::server
