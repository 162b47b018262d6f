#include "server/main_model.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "base/thread_pool.h"
#include "kernels/backend.h"
#include "model/expert_tables.h"
#include "model/memory_plan.h"
#include "scheduler/expert_placement.h"
#include "server/cli.h"
#include "transport/nccl/nccl_transport.h"

namespace baton::server {
namespace {

constexpr int64_t kKiB = 1024;
constexpr int64_t kMiB = int64_t{1} << 20;
// Of a rank on a CPU, where memory_mb is 0.
constexpr int64_t kPrefillBytes = 512 * kMiB;
constexpr int64_t kDecodeBytes = 1024 * kMiB;

// The schema allows exactly these texts.
kernels::BackendKind BackendOf(const std::string& text) {
  if (text == "reference") return kernels::BackendKind::kReference;
  if (text == "cuda") return kernels::BackendKind::kCuda;
  BATON_CHECK_EQ(text, "cpu");
  return kernels::BackendKind::kCpu;
}

kernels::IsaLevel IsaOf(const std::string& text) {
  for (const kernels::IsaLevel isa : {kernels::IsaLevel::kPortable, kernels::IsaLevel::kAvx2,
                                      kernels::IsaLevel::kAvx512, kernels::IsaLevel::kAvx512Bf16}) {
    if (text == kernels::IsaName(isa)) return isa;
  }
  BATON_CHECK_MSG(false, "an instruction set that the schema does not allow: " + text);
  return kernels::IsaLevel::kPortable;
}

std::string Scaled(double value, double step, const char* const (&units)[5]) {
  int unit = 0;
  while (value >= step && unit < 4) {
    value /= step;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f%s" : "%.1f%s", value, units[unit]);
  return text;
}

ModelDescription Describe(const Config& config, const std::string& directory,
                          const model::ModelConfig& model,
                          const model::GenerationDefaults& generation) {
  const model::ParameterCounts parameters = model::CountParameters(model);
  ModelDescription description;
  description.name = ModelName(config, directory);
  description.architecture = model.model_type;
  description.parameters = parameters.total;
  description.active_parameters = parameters.active;
  description.weight_format = WeightFormatText(model);
  description.kv_bytes_per_token = {
      {"bf16", model::KvTokenBytes(model, kernels::KvFormat::kBF16)},
      {"fp8", model::KvTokenBytes(model, kernels::KvFormat::kFP8)},
  };
  description.layers = model.layers;
  description.vocab_size = model.vocab_size;
  description.context_tokens = model.max_positions;
  description.eos_token_ids = generation.eos_token_ids;
  description.temperature = generation.temperature;
  description.top_p = generation.top_p;
  description.top_k = generation.top_k;
  return description;
}

// A model's heads bound the ranks of prefill; pinned ranks of one process would share processors.
absl::Status CheckRanks(const Config& config, RunnerRole role, const model::LoadedModel& model) {
  const int32_t ranks = RanksOf(config, role);
  const bool threads = !RanksAreProcesses(config, role);
  if (role == RunnerRole::kPrefill && ranks > model.config.heads) {
    return absl::InvalidArgumentError(
        absl::StrCat("prefill.ranks: ", ranks, " is more than the ", model.config.heads,
                     " attention heads of ", model.name, ", which the ranks split; set it to ",
                     model.config.heads, " or less, and run more prefill workers instead"));
  }
  if (threads && ranks > 1 && config.kernels().pin_threads()) {
    return absl::InvalidArgumentError(
        absl::StrCat("kernels.pin_threads: the ", ranks, " ranks that ", RoleName(role),
                     ".ranks asks for would all be pinned to the same processors; set it to "
                     "false, or run the ranks as processes"));
  }
  return absl::OkStatus();
}

// The schema allows exactly these texts.
model::Dispatch DispatchOf(const Config& config) {
  return config.decode().expert_dispatch() == "fp8" ? model::Dispatch::kFp8
                                                    : model::Dispatch::kActivations;
}

// Where a decode group's experts lie at first, and the room of a rank for those that move. A round
// of copies has at least one layer.
absl::Status PlanExperts(const Config& config, const model::LoadedModel& model,
                         model::RunnerOptions& options) {
  const v1::Rebalance& rebalance = config.decode().rebalance();
  const int32_t ranks = options.group.planned_ranks;
  if (ranks == 1) return absl::OkStatus();
  const int32_t slots =
      scheduler::SlotsPerRank(model.config.routed_experts, options.group.redundant_experts, ranks);
  BATON_ASSIGN_OR_RETURN(scheduler::ExpertPlacement placement,
                         scheduler::StartingPlacement(model::TopologyOf(model.config, ranks, slots),
                                                      scheduler::PlacementPolicy::kAuto,
                                                      rebalance.survive_rank_loss()));
  options.group.placement =
      std::make_shared<const scheduler::ExpertPlacement>(std::move(placement));
  options.spare_experts = std::max(rebalance.max_staged(), slots);
  return absl::OkStatus();
}

int32_t ThreadsOfRank(const Config& config, RunnerRole role) {
  const int32_t configured =
      role == RunnerRole::kPrefill ? config.prefill().threads() : config.decode().threads();
  const int32_t ranks = RanksAreProcesses(config, role) ? 1 : RanksOf(config, role);
  if (configured > 0 || ranks == 1) return configured;
  return std::max(1, AllowedCpuCount() / ranks);
}

// Of a rank with as many communicators for hand-offs as it may have.
int64_t WindowBytes(const Config& config) {
  const v1::Nccl& nccl = config.handoff().nccl();
  if (!nccl.one_sided()) return 0;
  return nccl.max_communicators() *
         static_cast<int64_t>(transport::NcclWindowBytes(
             static_cast<uint64_t>(nccl.coalesce_kb() * kKiB),
             static_cast<uint64_t>(config.handoff().max_message_kb() * kKiB)));
}

// What kernels.cuda.memory_fraction leaves of a GPU of `gpu_bytes`. The placement of experts and
// everything else that weights depend on is in `options`.
absl::StatusOr<int64_t> GpuBudget(const Config& config, RunnerRole role,
                                  const model::LoadedModel& model, model::RunnerOptions options,
                                  int64_t gpu_bytes) {
  const bool prefill = role == RunnerRole::kPrefill;
  const double fraction = config.kernels().cuda().memory_fraction();
  const auto allowed = static_cast<int64_t>(fraction * static_cast<double>(gpu_bytes));
  const int64_t staging =
      (prefill ? config.prefill().staging_mb() : config.handoff().nccl().staging_mb()) * kMiB +
      WindowBytes(config);
  options.total_pages = 1;
  const model::MemoryPlan plan = model::PlanMemory(model, options);
  const int64_t left = allowed - plan.device_weight_bytes - options.device.working_bytes - staging;
  if (left >= plan.private_bytes()) return left;
  return absl::InvalidArgumentError(absl::StrCat(
      "kernels.cuda.memory_fraction: ", fraction, " of the GPU's ", BytesText(gpu_bytes), ", ",
      BytesText(allowed), ", do not hold what a rank of ", RoleName(role),
      " needs: ", BytesText(plan.device_weight_bytes), " weights, ",
      BytesText(options.device.working_bytes + staging), " working memory and staging, ",
      BytesText(plan.private_bytes()), " scratch memory and one KV page; raise it, raise ",
      RoleName(role), ".ranks, or use GPUs with more memory"));
}

// What a rank may take for KV pages and scratch memory.
absl::StatusOr<int64_t> BudgetOf(const Config& config, RunnerRole role,
                                 const model::LoadedModel& model,
                                 const model::RunnerOptions& options) {
  const bool prefill = role == RunnerRole::kPrefill;
  const int64_t memory_mb = prefill ? config.prefill().memory_mb() : config.decode().memory_mb();
  if (memory_mb > 0) return memory_mb * kMiB;
  if (options.device.backend == kernels::BackendKind::kCuda) {
    const absl::StatusOr<int64_t> gpu_bytes = kernels::GpuMemoryBytes();
    if (gpu_bytes.ok()) return GpuBudget(config, role, model, options, *gpu_bytes);
    // Whoever makes the device is told why there is none; whoever only plans gets a plan.
  }
  return prefill ? kPrefillBytes : kDecodeBytes;
}

}  // namespace

const char* RoleName(RunnerRole role) {
  return role == RunnerRole::kPrefill ? "prefill" : "decode";
}

int32_t RanksOf(const Config& config, RunnerRole role) {
  return role == RunnerRole::kPrefill ? config.prefill().ranks() : config.decode().ranks();
}

bool RanksAreProcesses(const Config& config, RunnerRole role) {
  return role == RunnerRole::kPrefill ? config.prefill().group_addresses_size() > 0
                                      : config.decode().group_addresses_size() > 0;
}

absl::StatusOr<model::RunnerOptions> RunnerOptionsFor(const Config& config, RunnerRole role,
                                                      const model::LoadedModel& model) {
  BATON_RETURN_IF_ERROR(CheckRanks(config, role, model));
  const bool prefill = role == RunnerRole::kPrefill;
  model::RunnerOptions options;
  options.group.split = prefill ? model::Split::kTensor : model::Split::kExpert;
  options.group.timeout = Duration::Millis(config.group().timeout_ms());
  options.group.redundant_experts =
      prefill ? config.prefill().redundant_experts() : config.decode().redundant_experts();
  options.group.planned_ranks = RanksOf(config, role);
  if (!prefill) {
    BATON_RETURN_IF_ERROR(PlanExperts(config, model, options));
    options.group.dispatch = DispatchOf(config);
    options.group.overlap_rows = config.decode().overlap_rows();
  }
  options.device.backend = BackendOf(config.kernels().backend());
  options.device.max_isa = IsaOf(config.kernels().max_isa());
  // The schema allows "own" and "cublaslt".
  options.device.dense_gemm = config.kernels().cuda().dense_gemm() == "cublaslt"
                                  ? kernels::DenseGemm::kCublasLt
                                  : kernels::DenseGemm::kOwn;
  options.device.warpgroups = config.kernels().cuda().warpgroups() != "off";
  options.fp8_activations = config.kernels().fp8_activations();
  options.device.pin = config.kernels().pin_threads();
  options.device.records = config.kernels().graphs();
  options.device.threads = ThreadsOfRank(config, role);
  options.kv_format =
      config.model().kv_format() == "fp8" ? kernels::KvFormat::kFP8 : kernels::KvFormat::kBF16;
  options.page_tokens = config.model().page_tokens();
  options.max_batch_rows =
      prefill ? config.prefill().chunk_tokens() : config.decode().max_batch_rows();
  options.total_pages = prefill ? config.prefill().pages() : config.decode().pages();
  if (options.total_pages > 0) return options;

  BATON_ASSIGN_OR_RETURN(const int64_t budget, BudgetOf(config, role, model, options));
  options.total_pages = model::PagesThatFit(model, options, budget);
  if (options.total_pages > 0) return options;
  options.total_pages = 1;
  const int64_t least = model::PlanMemory(model, options).private_bytes() / kMiB + 1;
  return absl::InvalidArgumentError(absl::StrCat(
      RoleName(role), ".memory_mb: ", budget / kMiB,
      " MiB do not hold the scratch memory and one KV page; set it to ", least, " or more"));
}

ModelDescription DescribeModel(const Config& config, const model::ModelManifest& manifest) {
  return Describe(config, manifest.directory, manifest.config, manifest.generation);
}

ModelDescription DescribeModel(const Config& config, const model::LoadedModel& model) {
  ModelDescription description = Describe(config, model.directory, model.config, model.generation);
  description.hash = model.hash;
  // Where weights are FP8, bits of a request depend on it: whoever shares one must have it alike.
  if (config.kernels().fp8_activations() &&
      model.config.weight_format == model::WeightFormat::kFp8Block) {
    description.hash += "+fp8_activations";
  }
  description.kv_format = config.model().kv_format();
  return description;
}

std::string WeightFormatText(const model::ModelConfig& config) {
  return config.weight_format == model::WeightFormat::kFp8Block ? "fp8 128x128" : "bf16";
}

int64_t MachineMemoryBytes() {
  const int64_t pages = sysconf(_SC_PHYS_PAGES);
  const int64_t page_bytes = sysconf(_SC_PAGESIZE);
  int64_t bytes = pages > 0 && page_bytes > 0 ? pages * page_bytes : 0;
  int64_t limit = 0;
  std::ifstream cgroup("/sys/fs/cgroup/memory.max");  // "max" when there is no limit
  if (cgroup >> limit && limit > 0) bytes = bytes > 0 ? std::min(bytes, limit) : limit;
  return bytes;
}

std::string BytesText(int64_t bytes) {
  return Scaled(static_cast<double>(bytes), 1024, {" B", " KiB", " MiB", " GiB", " TiB"});
}

std::string CountText(int64_t count) {
  return Scaled(static_cast<double>(count), 1000, {"", " k", " M", " B", " T"});
}

}  // namespace baton::server
