#ifndef BATON_SERVER_MAIN_BENCH_EXPERTS_H_
#define BATON_SERVER_MAIN_BENCH_EXPERTS_H_

// `baton bench experts`: flags and output of server/bench_experts.h.

#include <vector>

#include "absl/status/statusor.h"
#include "server/cli.h"

namespace baton::server {

std::vector<CommandFlag> ExpertBenchFlags();

// Prints a table of the modes, or with --csv every step's time in each. Returns the exit code.
absl::StatusOr<int> RunExpertBench(const CommandContext& context);

}  // namespace baton::server

#endif  // BATON_SERVER_MAIN_BENCH_EXPERTS_H_
