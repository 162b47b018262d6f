#ifndef BATON_SERVER_BENCH_EXPERTS_H_
#define BATON_SERVER_BENCH_EXPERTS_H_

// `baton bench experts`: what redundant experts are worth under skewed load, by simulation with the
// shipped placement, routing and rebalance planner; no model, no clock, no I/O. A step takes as
// long as the sum over layers of the tokens of the most loaded rank, so 1 is the time of ranks that
// are even in every layer. Pure: the same options give the same rows.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace baton::server {

struct ExpertBenchOptions {
  int32_t ranks = 8;
  int32_t layers = 8;
  int32_t experts = 64;
  int32_t redundant = 16;  // slots beyond one for each expert
  int32_t top_k = 6;       // distinct experts of a token
  int32_t tokens = 512;    // of a step, over all ranks
  int32_t steps = 600;
  double exponent = 0.8;      // popularity of the i-th expert: (i + 1)^-exponent; 0: all alike
  int32_t shift_steps = 200;  // every so many steps other experts become popular; 0: never
  double shift_share = 0.25;  // share of experts that change places with another one then
  double half_life_steps = 25;
  int32_t interval_steps = 50;  // between two rebalances at least
  int32_t copies_per_step = 4;  // that each rank makes in the background
  double min_gain = 0.05;
  uint64_t seed = 1;
};

struct ExpertBenchRow {
  std::string mode;          // "none", "static" or "live"
  double balancedness = 0;   // mean over steps of even / actual step time
  double p50_step_time = 0;  // even = 1
  double p99_step_time = 0;
  int64_t copies = 0;
  int64_t switches = 0;
  std::vector<double> step_times;  // [steps], even = 1
};

// The same tokens in three modes: "none" has one slot per expert, in order; "static" has the
// redundant ones too, placed once by the true popularity at the start; "live" begins as static and
// rebalances by what it measures. INVALID_ARGUMENT names the option, what is allowed and the fix.
absl::StatusOr<std::vector<ExpertBenchRow>> BenchExperts(const ExpertBenchOptions& options);

}  // namespace baton::server

#endif  // BATON_SERVER_BENCH_EXPERTS_H_
