#ifndef BATON_MODEL_RUNNER_H_
#define BATON_MODEL_RUNNER_H_

// Executes batch plans on one rank: owns the weights' views, the KV page arrays and the scratch
// memory, and knows nothing of requests beyond the plan. The worker loops see only this interface,
// so that the simulation can put a stub in its place. One thread calls a Runner (the loop's).

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "base/ids.h"
#include "scheduler/types.h"

namespace baton::model {

class ExpertHost;  // model/expert_host.h

struct RunnerInfo {
  std::string model_name;
  std::string model_hash;   // hex; of config.json and the checkpoint's tensor headers
  std::string kv_format;    // "bf16", "fp8" (or "f32" in oracle tests)
  int32_t layers = 0;       // layers with KV pages
  int32_t page_tokens = 0;  // tokens of a page
  int32_t entry_bytes = 0;  // bytes of one token in one layer's page
  int32_t total_pages = 0;
  int32_t max_positions = 0;  // prompt + output tokens at most
  int32_t vocab_size = 0;
};

// Told of progress inside a pass, on the calling thread.
class LayerObserver {
 public:
  virtual ~LayerObserver() = default;
  // The latents of every row of the plan now stand in `layer`'s pages and will not change. Called
  // once per layer, in layer order, before the layer's later work begins or, on a device with a
  // queue, while it runs; must not block for long (it delays the pass, or the work of the layers
  // behind). It may pack the pages: that runs beside the pass.
  virtual void OnLayerWritten(int32_t layer) = 0;
};

class Runner {
 public:
  virtual ~Runner() = default;
  virtual const RunnerInfo& info() const = 0;

  // Runs one forward pass; writes the rows' latents into their pages and samples where asked.
  // `observer` may be null. A row's bits depend only on its own sequence (row invariance), so a
  // slice that cannot be run or sampled is one of `output->failures`, and the others are as if it
  // were not there. An error means that no slice is to blame alone (the plan's sums are wrong, or
  // the machine is at fault); pages written by a failed pass are undefined.
  virtual absl::Status Run(const scheduler::BatchPlan& plan, LayerObserver* observer,
                           scheduler::StepOutput* output) = 0;

  // In a group whose ranks run their passes together: whether this rank should run one although it
  // has nothing to run (an empty plan will do), because others wait for it or the group itself has
  // something to settle. Between passes. `wakeup`, which may only mark that the loop should look,
  // is called from any thread when that may have become true; set before use, and replaced before
  // what it touches goes.
  virtual bool WantsPass() { return false; }
  virtual void SetWakeup(const std::function<void()>& /*wakeup*/) {}

  // Not OK, for good: this runner can run nothing any more, since its group has been lost.
  virtual absl::Status health() const { return absl::OkStatus(); }

  // The experts of this rank; null where nobody else places them. Lives as long as the runner.
  virtual ExpertHost* experts() { return nullptr; }

  // Copies the first `token_count` tokens of `pages` (all full but the last) of one layer into
  // `out` (token_count * entry_bytes bytes, token order) and returns the 64-bit checksum of `out`.
  virtual uint64_t PackPages(int32_t layer, std::span<const PageId> pages, int32_t token_count,
                             std::span<std::byte> out) = 0;

  // The reverse. DATA_LOSS, and no page touched, when `bytes` do not have `checksum`.
  virtual absl::Status UnpackPages(int32_t layer, std::span<const PageId> pages,
                                   int32_t token_count, std::span<const std::byte> bytes,
                                   uint64_t checksum) = 0;
};

}  // namespace baton::model

#endif  // BATON_MODEL_RUNNER_H_
