#ifndef BATON_MODEL_MEMORY_PLAN_H_
#define BATON_MODEL_MEMORY_PLAN_H_

// How many bytes a runner needs, before it is made. Pure.

#include <cstdint>

#include "model/loaded_model.h"
#include "model/model_runner.h"

namespace baton::model {

struct MemoryPlan {
  int64_t weight_bytes = 0;  // mapped, shared by all processes of a host
  // Of one rank, the one with the most, in its device's memory: 0 where the mapping is used.
  int64_t device_weight_bytes = 0;
  int64_t kv_token_bytes = 0;  // one token, all layers
  int64_t kv_page_bytes = 0;   // one page id, all layers
  int64_t kv_bytes = 0;        // total_pages of them
  int64_t scratch_bytes = 0;   // activations of a pass, logits, rotary tables
  int64_t private_bytes() const { return kv_bytes + scratch_bytes; }
  // Of a device that has all of it.
  int64_t device_bytes() const { return device_weight_bytes + private_bytes(); }
};

// Bytes of one token's latents, all layers.
int64_t KvTokenBytes(const ModelConfig& config, kernels::KvFormat format);

MemoryPlan PlanMemory(const LoadedModel& model, const RunnerOptions& options);

// The largest total_pages whose private_bytes stay within `budget_bytes` (0 when not even one page
// does); the options' own total_pages is not looked at.
int32_t PagesThatFit(const LoadedModel& model, const RunnerOptions& options, int64_t budget_bytes);

}  // namespace baton::model

#endif  // BATON_MODEL_MEMORY_PLAN_H_
