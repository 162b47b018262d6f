#ifndef BATON_SERVER_MAIN_MODEL_H_
#define BATON_SERVER_MAIN_MODEL_H_

// From the configuration to a loaded model and its runners: what every command that computes begins
// with. Part of main: with embedded.cc the only code of server/ that sees more of model/ than the
// tokenizer.

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/config.h"
#include "model/loaded_model.h"
#include "model/model_runner.h"
#include "server/model_description.h"

namespace baton::server {

enum class RunnerRole : uint8_t { kPrefill, kDecode };
const char* RoleName(RunnerRole role);  // "prefill", and the section of the configuration

// Ranks of the role's worker.
int32_t RanksOf(const Config& config, RunnerRole role);
// They are processes that meet at <role>.group_addresses; else threads of one process.
bool RanksAreProcesses(const Config& config, RunnerRole role);

// The runner of one rank of a role, as prefill.* or decode.*, model.*, kernels.* and group.* say,
// but for the group's collectives: until it has them, of several ranks, it is only a plan.
// `total_pages` is the configured number, or what memory_mb or a GPU holds beside the scratch
// memory: the same on all ranks, if their GPUs have the same memory. INVALID_ARGUMENT, with the
// fix, when that is not one page, or when the model cannot be split so.
absl::StatusOr<model::RunnerOptions> RunnerOptionsFor(const Config& config, RunnerRole role,
                                                      const model::LoadedModel& model);

// What front ends and banner tell of the model. A manifest has no hash, and says nothing of the
// workers' KV format.
ModelDescription DescribeModel(const Config& config, const model::LoadedModel& model);
ModelDescription DescribeModel(const Config& config, const model::ModelManifest& manifest);

// "fp8 128x128" or "bf16".
std::string WeightFormatText(const model::ModelConfig& config);

// Memory of this machine, less if a cgroup allows less; 0 when unknown.
int64_t MachineMemoryBytes();

// 14680064 -> "14.0 MiB"; 12345678 -> "12.3 M" (for counts).
std::string BytesText(int64_t bytes);
std::string CountText(int64_t count);

}  // namespace baton::server

#endif  // BATON_SERVER_MAIN_MODEL_H_
