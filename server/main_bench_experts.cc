#include "server/main_bench_experts.h"

#include <cstdio>
#include <ostream>

#include "base/status_macros.h"
#include "server/bench_experts.h"

namespace baton::server {
namespace {

void PrintTable(const std::vector<ExpertBenchRow>& rows, std::ostream& out) {
  char line[128];
  std::snprintf(line, sizeof(line), "%-8s %12s %10s %10s %9s %8s\n", "mode", "balancedness",
                "step p50", "step p99", "switches", "copies");
  out << line;
  for (const ExpertBenchRow& row : rows) {
    std::snprintf(line, sizeof(line), "%-8s %12.3f %10.2f %10.2f %9lld %8lld\n", row.mode.c_str(),
                  row.balancedness, row.p50_step_time, row.p99_step_time,
                  static_cast<long long>(row.switches), static_cast<long long>(row.copies));
    out << line;
  }
  out << "Step times of the experts alone, as multiples of what even ranks would take.\n";
}

void PrintCsv(const std::vector<ExpertBenchRow>& rows, std::ostream& out) {
  out << "step";
  for (const ExpertBenchRow& row : rows) out << ',' << row.mode;
  out << '\n';
  for (size_t step = 0; step < rows[0].step_times.size(); ++step) {
    out << step;
    for (const ExpertBenchRow& row : rows) out << ',' << row.step_times[step];
    out << '\n';
  }
}

}  // namespace

std::vector<CommandFlag> ExpertBenchFlags() {
  return {
      {"ranks", FlagType::kInteger, "experts: ranks of the group.", "8", "ranks", 1, 1024},
      {"layers", FlagType::kInteger, "experts: MoE layers.", "8", "layers", 1, 128},
      {"experts", FlagType::kInteger, "experts: logical experts of a layer.", "64", "experts", 1,
       1024},
      {"redundant", FlagType::kInteger, "experts: slots beyond one for each expert.", "16", "slots",
       0, 65536},
      {"top-k", FlagType::kInteger, "experts: experts of a token.", "6", "experts", 1, 64},
      {"step-tokens", FlagType::kInteger, "experts: tokens of a step, over all ranks.", "512",
       "tokens", 1, 1e6},
      {"steps", FlagType::kInteger, "experts: steps to simulate.", "600", "steps", 1, 1e6},
      {"exponent", FlagType::kNumber,
       "experts: of the power law of popularity; 0 makes all experts alike.", "0.8", "", 0, 4},
      {"shift-steps", FlagType::kInteger,
       "experts: every so many steps other experts become popular; 0: never.", "200", "steps", 0,
       1e6},
      {"interval-steps", FlagType::kInteger, "experts: between two rebalances at least.", "50",
       "steps", 1, 1e6},
      {"csv", FlagType::kSwitch, "experts: print every step's time instead of a table.", ""},
  };
}

absl::StatusOr<int> RunExpertBench(const CommandContext& context) {
  const auto integer = [&](const char* name) {
    return static_cast<int32_t>(context.flags.integer(name));
  };
  ExpertBenchOptions options;
  options.ranks = integer("ranks");
  options.layers = integer("layers");
  options.experts = integer("experts");
  options.redundant = integer("redundant");
  options.top_k = integer("top-k");
  options.tokens = integer("step-tokens");
  options.steps = integer("steps");
  options.exponent = context.flags.number("exponent");
  options.shift_steps = integer("shift-steps");
  options.interval_steps = integer("interval-steps");
  options.seed = static_cast<uint64_t>(context.flags.integer("seed"));
  BATON_ASSIGN_OR_RETURN(const std::vector<ExpertBenchRow> rows, BenchExperts(options));
  if (context.flags.on("csv")) {
    PrintCsv(rows, context.out);
  } else {
    PrintTable(rows, context.out);
  }
  return kExitOk;
}

}  // namespace baton::server
