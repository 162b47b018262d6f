#include "model/memory_plan.h"

#include <algorithm>

namespace baton::model {

int64_t KvTokenBytes(const ModelConfig& config, kernels::KvFormat format) {
  return config.layers *
         kernels::KvEntryBytes(format, config.kv_lora_rank, config.qk_rope_head_dim);
}

MemoryPlan PlanMemory(const LoadedModel& model, const RunnerOptions& options) {
  const ModelConfig& config = model.config;
  MemoryPlan plan;
  plan.weight_bytes = static_cast<int64_t>(model.checkpoint.tensor_bytes());
  plan.kv_token_bytes = KvTokenBytes(config, options.kv_format);
  plan.kv_page_bytes = plan.kv_token_bytes * options.page_tokens;
  plan.kv_bytes = plan.kv_page_bytes * options.total_pages;
  plan.scratch_bytes =
      DecoderBytes(config, DecoderOptionsFor(options), options.page_tokens, options.total_pages);
  return plan;
}

int32_t PagesThatFit(const LoadedModel& model, const RunnerOptions& options, int64_t budget_bytes) {
  // Scratch memory grows with the pages too (rotary tables, page tables): search.
  int32_t fits = 0;
  int32_t too_many = (1 << 24) + 1;
  while (too_many - fits > 1) {
    RunnerOptions tried = options;
    tried.total_pages = fits + (too_many - fits) / 2;
    if (PlanMemory(model, tried).private_bytes() <= budget_bytes) {
      fits = tried.total_pages;
    } else {
      too_many = tried.total_pages;
    }
  }
  return fits;
}

}  // namespace baton::model
