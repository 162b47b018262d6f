#ifndef BATON_MODEL_METERED_RUNNER_H_
#define BATON_MODEL_METERED_RUNNER_H_

// A Runner that records the size and duration of every pass of another one. Same threads, same
// errors; the other one must outlive it.

#include "base/clock.h"
#include "base/metrics.h"
#include "model/runner_decorator.h"

namespace baton::model {

class MeteredRunner final : public RunnerDecorator {
 public:
  MeteredRunner(Runner& runner, Clock& clock, const WorkerMetrics& metrics)
      : RunnerDecorator(runner), clock_(clock), metrics_(metrics) {}

  absl::Status Run(const scheduler::BatchPlan& plan, LayerObserver* observer,
                   scheduler::StepOutput* output) override {
    const Tick start = clock_.Now();
    absl::Status status = RunnerDecorator::Run(plan, observer, output);
    metrics_.step_seconds.Observe((clock_.Now() - start).seconds());
    metrics_.batch_rows.Observe(plan.total_rows);
    return status;
  }

 private:
  Clock& clock_;
  const WorkerMetrics metrics_;
};

}  // namespace baton::model

#endif  // BATON_MODEL_METERED_RUNNER_H_
