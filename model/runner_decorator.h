#ifndef BATON_MODEL_RUNNER_DECORATOR_H_
#define BATON_MODEL_RUNNER_DECORATOR_H_

// A Runner that passes everything on to another one: the base of those that change or watch some
// calls. Same threads, same errors; the other one must outlive it.

#include <functional>

#include "model/runner.h"

namespace baton::model {

class RunnerDecorator : public Runner {
 public:
  explicit RunnerDecorator(Runner& runner) : runner_(runner) {}

  const RunnerInfo& info() const override { return runner_.info(); }
  absl::Status Run(const scheduler::BatchPlan& plan, LayerObserver* observer,
                   scheduler::StepOutput* output) override {
    return runner_.Run(plan, observer, output);
  }
  bool WantsPass() override { return runner_.WantsPass(); }
  void SetWakeup(const std::function<void()>& wakeup) override { runner_.SetWakeup(wakeup); }
  absl::Status health() const override { return runner_.health(); }
  ExpertHost* experts() override { return runner_.experts(); }
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
};

}  // namespace baton::model

#endif  // BATON_MODEL_RUNNER_DECORATOR_H_
