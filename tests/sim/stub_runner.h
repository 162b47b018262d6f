#ifndef BATON_TESTS_SIM_STUB_RUNNER_H_
#define BATON_TESTS_SIM_STUB_RUNNER_H_

// A model::Runner whose "model" is a hash, but whose pages are real memory: every row writes bytes
// derived from its token and position into its page of every layer, and a sampled token is a hash
// over all bytes that the sequence's pages hold. A page that was lost, mixed up, reused too early
// or handed off wrongly therefore gives a wrong token, which the oracle (OracleTokens) shows.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/clock.h"
#include "base/random.h"
#include "model/runner.h"
#include "scheduler/types.h"

namespace baton::sim {

inline constexpr int32_t kLayers = 3;
inline constexpr int32_t kPageTokens = 16;
inline constexpr int32_t kVocabulary = 50;
inline constexpr int32_t kMaxPositions = 1024;
inline constexpr TokenId kEos = 0;

struct StubRunnerOptions {
  int32_t total_pages = 64;
  uint64_t model_seed = 1;          // the "weights": must agree between workers
  Duration pass_cost;               // simulated time of a pass ...
  Duration row_cost;                // ... and of each of its rows
  double failure_chance = 0;        // of a pass
  double slice_failure_chance = 0;  // of each slice, alone
  uint64_t fault_seed = 1;
};

class StubRunner final : public model::Runner {
 public:
  // `clock`, if not null, advances by each pass's cost.
  StubRunner(const StubRunnerOptions& options, ManualClock* clock);

  const model::RunnerInfo& info() const override { return info_; }
  absl::Status Run(const scheduler::BatchPlan& plan, model::LayerObserver* observer,
                   scheduler::StepOutput* output) override;
  uint64_t PackPages(int32_t layer, std::span<const PageId> pages, int32_t token_count,
                     std::span<std::byte> out) override;
  absl::Status UnpackPages(int32_t layer, std::span<const PageId> pages, int32_t token_count,
                           std::span<const std::byte> bytes, uint64_t checksum) override;

  uint64_t passes() const { return passes_; }
  int32_t max_rows() const { return max_rows_; }

 private:
  void CheckPlan(const scheduler::BatchPlan& plan) const;
  uint64_t& Entry(int32_t layer, PageId page, int32_t offset);

  const StubRunnerOptions options_;
  model::RunnerInfo info_;
  ManualClock* clock_;
  Rng faults_;
  std::vector<uint64_t> pages_;  // [layer][page][token]
  uint64_t passes_ = 0;
  int32_t max_rows_ = 0;
};

// The output of a request that nothing disturbs, ending before the token that stops it, and why it
// ends there.
struct OracleOutput {
  std::vector<TokenId> tokens;
  scheduler::FinishReason reason = scheduler::FinishReason::kLength;
};
OracleOutput OracleTokens(const std::vector<TokenId>& prompt,
                          const scheduler::SamplingParams& sampling, uint64_t model_seed);

}  // namespace baton::sim

#endif  // BATON_TESTS_SIM_STUB_RUNNER_H_
