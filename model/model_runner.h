#ifndef BATON_MODEL_MODEL_RUNNER_H_
#define BATON_MODEL_MODEL_RUNNER_H_

// The Runner (model/runner.h) that executes a loaded model on one device.

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/ops.h"
#include "model/decoder.h"
#include "model/loaded_model.h"
#include "model/rank_group.h"
#include "model/runner.h"

namespace baton::model {

struct RunnerOptions {
  kernels::DeviceOptions device;
  kernels::KvFormat kv_format = kernels::KvFormat::kBF16;
  kernels::DType activations = kernels::DType::kBF16;  // or kF32, for comparison with float oracles
  bool fp8_activations = false;                        // as in DecoderOptions
  int32_t page_tokens = 64;                            // 16..256
  int32_t total_pages =
      256;  // >= 1; page ids 0 .. total_pages - 1 (all layers of one id count as one page)
  int32_t max_batch_rows = 512;  // 1..65536; rows of one BatchPlan at most
  // Copies the weights to the device's memory even where it could read the mapped files.
  bool upload_weights = false;
  // Of copying the weights.
  std::function<void(int64_t done_bytes, int64_t total_bytes)> upload_progress;
  // Of a group that splits by Split::kExpert and whose experts lie in the memory of devices: room
  // of this rank, beside the experts of its slots, for copies until they are switched to.
  int32_t spare_experts = 64;
  RankGroup group;  // its collectives outlive the runner; all ranks make the same calls of Run
};

// Allocates pages and scratch memory; `Run` allocates no more than bookkeeping. INVALID_ARGUMENT
// for options out of range, FAILED_PRECONDITION for a backend that this build lacks,
// RESOURCE_EXHAUSTED when the memory is not there.
absl::StatusOr<std::unique_ptr<Runner>> CreateRunner(std::shared_ptr<const LoadedModel> model,
                                                     const RunnerOptions& options);

// The part of the options that shapes the forward pass.
DecoderOptions DecoderOptionsFor(const RunnerOptions& options);

}  // namespace baton::model

#endif  // BATON_MODEL_MODEL_RUNNER_H_
