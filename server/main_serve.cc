// baton serve: all roles in one process.

#include <filesystem>
#include <ostream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "server/commands.h"
#include "server/exit_code.h"
#include "server/main_embedded.h"
#include "server/main_model.h"
#include "server/main_roles.h"

namespace baton::server {
namespace {

// As a shell finds it from anywhere.
std::string ProgramPath() {
  std::error_code error;
  const std::filesystem::path path = std::filesystem::read_symlink("/proc/self/exe", error);
  return error ? "baton" : path.string();
}

constexpr Duration kReadyTimeout = Duration::Seconds(30);
constexpr Duration kShutdownGrace = Duration::Seconds(2);

// "prefill (4 ranks, each of 120 pages of 64 tokens"
std::string RanksText(const std::string& role, const std::vector<EmbeddedRank>& ranks) {
  const model::RunnerInfo& info = ranks.front().runner->info();
  return absl::StrCat(role, " (", ranks.size(), ranks.size() == 1 ? " rank, " : " ranks, each of ",
                      info.total_pages, " pages of ", info.page_tokens, " tokens");
}

std::string RolesText(const EmbeddedParts& parts) {
  return absl::StrCat("router, ", RanksText("prefill", parts.prefill_ranks), "), ",
                      RanksText("decode", parts.decode_ranks), " and ",
                      parts.decode.planner.max_sequences, " sequences)");
}

void PrintBanner(const CommandContext& context, const ModelFiles& files, const std::string& roles,
                 const Embedded& embedded) {
  const ModelDescription& model = files.description;
  std::ostream& out = context.err;
  out << "\nBaton serves " << model.name << " (" << model.architecture << ")\n"
      << "  parameters  " << CountText(model.parameters) << " total, "
      << CountText(model.active_parameters) << " active for each token\n"
      << "  weights     " << model.weight_format << ", mapped from " << files.model->directory
      << "\n"
      << "  KV cache    " << model.kv_format << ", " << model.kv_bytes_per_token.at(model.kv_format)
      << " bytes per token, context " << model.context_tokens << " tokens\n"
      << "  roles       " << roles << "\n"
      << "  ports       gRPC " << embedded.grpc_port() << ", HTTP " << embedded.http_port()
      << " (/metrics /health /ready)\n\n"
      << "Try it from another terminal:\n\n"
      << "  " << ProgramPath() << " complete --server localhost:" << embedded.grpc_port()
      << " \"The command\"\n"
      << std::endl;
}

absl::StatusOr<int> Serve(const CommandContext& context) {
  TerminationSignals signals;
  const Config& config = context.config();
  MonotonicClock clock;
  context.err << "Loading the model ..." << std::endl;
  BATON_ASSIGN_OR_RETURN(const ModelFiles files, LoadModelFiles(config));
  BATON_ASSIGN_OR_RETURN(EmbeddedParts parts, MakeEmbeddedParts(config, files, context.log));
  parts.grpc_address = config.server().grpc_address();
  parts.http_address = config.server().http_address();
  const std::string roles = RolesText(parts);
  Metrics metrics(MetricsOptionsFor(config, files.description));
  context.err << "Starting router, prefill and decode ..." << std::endl;
  BATON_ASSIGN_OR_RETURN(const std::unique_ptr<Embedded> embedded,
                         Embedded::Start(std::move(parts), clock, metrics, context.log));
  const Tick start = clock.Now();
  while (!embedded->Summary().ready) {
    if (clock.Now() - start > kReadyTimeout) {
      return absl::UnavailableError("the roles did not connect to each other: " +
                                    NotReadyReason(embedded->Summary()));
    }
    if (signals.WaitFor(Duration::Millis(5))) return kExitOk;
  }
  PrintBanner(context, files, roles, *embedded);
  BATON_RETURN_IF_ERROR(
      WritePortFile(context.flags.text("port-file"), embedded->grpc_port(), embedded->http_port()));
  const DrainResult drained =
      RunUntilTerminated(signals,
                         {.begin = [&] { embedded->Drain(); },
                          .drained = [&] { return embedded->drained(); },
                          .health = [&] { return embedded->health(); }},
                         Duration::Millis(config.drain().timeout_ms()), clock, context.log);
  embedded->Stop(drained == DrainResult::kDrained ? kShutdownGrace : Duration());
  return drained == DrainResult::kDrained ? kExitOk : kExitFailure;
}

}  // namespace

Command ServeCommand() {
  return {.name = "serve",
          .summary = "router, prefill and decode worker in one process",
          .description =
              "Serves a model with all roles in one process: the demo model unless --model names "
              "another. Prints how to reach it, then serves until SIGTERM or Ctrl-C; then running "
              "requests finish, and it exits 0.",
          .flags = {PortFileFlag()},
          .config = {"model", "server", "router", "prefill", "decode", "handoff", "kernels",
                     "group", "drain", "log", "metrics"},
          .run = [](const CommandContext& context) { return ExitCode(context, Serve(context)); }};
}

}  // namespace baton::server
