#ifndef BATON_MODEL_METERED_RUNNER_H_
#define BATON_MODEL_METERED_RUNNER_H_

// A Runner that records the size and duration of every pass of another one. Same threads, same
// errors; the other one must outlive it.

#include <functional>
#include <utility>

#include "base/clock.h"
#include "base/metrics.h"
#include "model/runner.h"

namespace baton::model {

class MeteredRunner final : public Runner {
 public:
  MeteredRunner(Runner& runner, Clock& clock, const WorkerMetrics& metrics)
      : runner_(runner), clock_(clock), metrics_(metrics) {}

  const RunnerInfo& info() const override { return runner_.info(); }

  absl::Status Run(const scheduler::BatchPlan& plan, LayerObserver* observer,
                   scheduler::StepOutput* output) override {
    const Tick start = clock_.Now();
    absl::Status status = runner_.Run(plan, observer, output);
    metrics_.step_seconds.Observe((clock_.Now() - start).seconds());
    metrics_.batch_rows.Observe(plan.total_rows);
    return status;
  }

  bool PeersWait() const override { return runner_.PeersWait(); }
  void SetWakeup(const std::function<void()>& wakeup) override { runner_.SetWakeup(wakeup); }

  uint64_t PackPages(int32_t layer, std::span<const PageId> pages, int32_t token_count,
                     std::span<std::byte> out) override {
    return runner_.PackPages(layer, pages, token_count, out);
  }

  absl::Status UnpackPages(int32_t layer, std::span<const PageId> pages, int32_t token_count,
                           std::span<const std::byte> bytes, uint64_t checksum) override {
    return runner_.UnpackPages(layer, pages, token_count, bytes, checksum);
  }

 private:
  Runner& runner_;
  Clock& clock_;
  const WorkerMetrics metrics_;
};

}  // namespace baton::model

#endif  // BATON_MODEL_METERED_RUNNER_H_
