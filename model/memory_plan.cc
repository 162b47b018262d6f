#include "model/memory_plan.h"

#include <algorithm>

#include "model/rank_weights.h"

namespace baton::model {

namespace {

// What depends on the number of pages.
MemoryPlan PlanPages(const LoadedModel& model, const RunnerOptions& options) {
  const ModelConfig& config = model.config;
  MemoryPlan plan;
  plan.kv_token_bytes = KvTokenBytes(config, options.kv_format);
  plan.kv_page_bytes = plan.kv_token_bytes * options.page_tokens;
  plan.kv_bytes = plan.kv_page_bytes * options.total_pages;
  plan.scratch_bytes =
      DecoderBytes(config, DecoderOptionsFor(options), options.page_tokens, options.total_pages);
  return plan;
}

}  // namespace

int64_t KvTokenBytes(const ModelConfig& config, kernels::KvFormat format) {
  return config.layers *
         kernels::KvEntryBytes(format, config.kv_lora_rank, config.qk_rope_head_dim);
}

MemoryPlan PlanMemory(const LoadedModel& model, const RunnerOptions& options) {
  MemoryPlan plan = PlanPages(model, options);
  plan.weight_bytes = static_cast<int64_t>(model.checkpoint.tensor_bytes());
  if (options.device.backend != kernels::BackendKind::kCuda && !options.upload_weights) return plan;
  for (int32_t rank = 0; rank < options.group.ranks(); ++rank) {
    const absl::StatusOr<int64_t> bytes =
        RankWeights::DeviceBytes(model, options.group, rank,
                                 options.group.split == Split::kExpert ? options.spare_experts : 0);
    // Without a placement for its group a runner cannot be made either, and says why.
    if (bytes.ok()) plan.device_weight_bytes = std::max(plan.device_weight_bytes, *bytes);
  }
  return plan;
}

int32_t PagesThatFit(const LoadedModel& model, const RunnerOptions& options, int64_t budget_bytes) {
  // Scratch memory grows with the pages too (rotary tables, page tables): search.
  int32_t fits = 0;
  int32_t too_many = (1 << 24) + 1;
  while (too_many - fits > 1) {
    RunnerOptions tried = options;
    tried.total_pages = fits + (too_many - fits) / 2;
    if (PlanPages(model, tried).private_bytes() <= budget_bytes) {
      fits = tried.total_pages;
    } else {
      too_many = tried.total_pages;
    }
  }
  return fits;
}

}  // namespace baton::model
