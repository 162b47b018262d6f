// baton check: the configuration and the checkpoint, without serving.

#include <algorithm>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/build_info.h"
#include "kernels/backend.h"
#include "model/loaded_model.h"
#include "model/memory_plan.h"
#include "model/tokenizer.h"
#include "server/commands.h"
#include "server/main_model.h"

namespace baton::server {
namespace {

// Gathers problems from sources that each may report many, one a line.
class Problems {
 public:
  void Add(const std::string& problem) { all_.push_back(problem); }
  void Add(const std::string& about, const absl::Status& status) {
    if (!status.ok()) Add(about + ": " + std::string(status.message()));
  }
  bool empty() const { return all_.empty(); }
  void Print(std::ostream& err) const {
    err << all_.size() << (all_.size() == 1 ? " problem:\n" : " problems:\n");
    for (const std::string& problem : all_) {
      std::string indented = problem;
      for (size_t at = 0; (at = indented.find('\n', at)) != std::string::npos; at += 5) {
        indented.insert(at + 1, "    ");
      }
      err << "  - " << indented << '\n';
    }
  }

 private:
  std::vector<std::string> all_;
};

void Line(std::ostream& out, std::string label, const std::string& text) {
  label.resize(std::max<size_t>(label.size() + 2, 16), ' ');
  out << label << text << '\n';
}

void PrintModel(const Config& config, const model::LoadedModel& model, std::ostream& out) {
  const ModelDescription d = DescribeModel(config, model);
  Line(out, "model", d.name + " (" + d.architecture + ") in " + model.directory);
  Line(out, "hash", d.hash);
  Line(out, "parameters",
       CountText(d.parameters) + ", " + CountText(d.active_parameters) + " active per token");
  Line(out, "weights",
       d.weight_format + ", " + BytesText(static_cast<int64_t>(model.checkpoint.tensor_bytes())) +
           " mapped");
  Line(out, "layers", std::to_string(d.layers));
  Line(out, "context", std::to_string(d.context_tokens) + " tokens");
  Line(out, "KV cache",
       d.kv_format + ", " + std::to_string(d.kv_bytes_per_token.at(d.kv_format)) +
           " bytes per token");
}

void CheckTokenizer(const std::string& directory, const model::LoadedModel* model,
                    Problems& problems) {
  const auto tokenizer = model::Tokenizer::Load(directory);
  if (!tokenizer.ok()) {
    problems.Add("tokenizer", tokenizer.status());
    return;
  }
  if (model != nullptr && (*tokenizer)->vocab_size() > model->config.vocab_size) {
    problems.Add("tokenizer: it has ids up to " + std::to_string((*tokenizer)->vocab_size() - 1) +
                 ", the model's embedding only " + std::to_string(model->config.vocab_size) +
                 " rows; the files belong to different models");
  }
  if ((*tokenizer)->has_chat_template()) {
    const model::ChatMessage hello{"user", "hello"};
    problems.Add("chat template", (*tokenizer)->RenderChat({&hello, 1}, {}).status());
  }
}

// One role's rows of the memory plan; adds what it needs of the host to `total`.
void PlanRole(const Config& config, RunnerRole role, const model::LoadedModel& model,
              std::ostream& out, Problems& problems, int64_t& total) {
  const std::string name = role == RunnerRole::kPrefill ? "prefill" : "decode";
  const absl::StatusOr<model::RunnerOptions> options = RunnerOptionsFor(config, role, model);
  if (!options.ok()) {
    problems.Add(std::string(options.status().message()));
    return;
  }
  const model::MemoryPlan plan = model::PlanMemory(model, *options);
  const int64_t tokens = int64_t{options->total_pages} * options->page_tokens;
  const int32_t ranks = RanksOf(config, role);
  // A GPU's memory is not the host's.
  if (plan.device_weight_bytes == 0) total += ranks * plan.private_bytes();
  Line(out, "  " + name,
       BytesText(plan.kv_bytes) + " in " + std::to_string(options->total_pages) + " pages (" +
           std::to_string(tokens) + " tokens) + " + BytesText(plan.scratch_bytes) +
           " scratch = " + BytesText(plan.private_bytes()) +
           (ranks == 1 ? "" : ", on each of " + std::to_string(ranks) + " ranks"));
  if (plan.device_weight_bytes > 0) {
    Line(out, "  " + name + " GPU",
         BytesText(plan.device_bytes()) + ": of it " + BytesText(plan.device_weight_bytes) +
             " weights" + (ranks == 1 ? "" : ", the most that a rank holds"));
    const absl::StatusOr<int64_t> gpu_bytes = kernels::GpuMemoryBytes();  // without one, told below
    if (gpu_bytes.ok() && plan.device_bytes() > *gpu_bytes) {
      problems.Add(name + ".memory_mb: a rank needs " + BytesText(plan.device_bytes()) +
                   ", its GPU has " + BytesText(*gpu_bytes) +
                   "; set it to 0, which takes what is " + "left, or raise " + name + ".ranks");
    }
  }
  if (role == RunnerRole::kDecode && tokens <= config.decode().reserve_output_tokens()) {
    problems.Add(
        "decode.reserve_output_tokens: " + std::to_string(config.decode().reserve_output_tokens()) +
        " tokens do not fit decode's pages (" + std::to_string(tokens) +
        " tokens), so no request could ever start; raise decode.memory_mb or decode.pages");
  }
}

void PrintMemory(const Config& config, const model::LoadedModel& model, std::ostream& out,
                 Problems& problems) {
  out << "memory plan\n";
  const int64_t weights = static_cast<int64_t>(model.checkpoint.tensor_bytes());
  Line(out, "  weights", BytesText(weights) + " mapped, shared by all processes of a host");
  int64_t total = weights;
  PlanRole(config, RunnerRole::kPrefill, model, out, problems, total);
  PlanRole(config, RunnerRole::kDecode, model, out, problems, total);
  const int64_t staging = (config.prefill().staging_mb() << 20) * config.prefill().ranks();
  Line(out, "  staging", BytesText(staging) + " for latents on their way");
  total += staging;
  const int64_t machine = MachineMemoryBytes();
  Line(out, "  in all",
       BytesText(total) + " for both roles on one host; this one has " + BytesText(machine));
  if (machine > 0 && total > machine) {
    problems.Add("memory: both roles need " + BytesText(total) + ", this machine has " +
                 BytesText(machine) +
                 "; lower prefill.memory_mb or decode.memory_mb, or run the roles on two hosts");
  }
}

void CheckKernels(const Config& config, const model::LoadedModel& model, std::ostream& out,
                  Problems& problems) {
  auto options = RunnerOptionsFor(config, RunnerRole::kDecode, model);
  if (!options.ok()) return;  // reported with the memory plan
  const auto device = kernels::CreateDevice(options->device);
  if (!device.ok()) {
    problems.Add("kernels.backend", device.status());
    return;
  }
  Line(out, "kernels",
       std::string(kernels::BackendName((*device)->kind())) + ", " +
           kernels::IsaName((*device)->isa()) + ", " + std::to_string((*device)->pool().threads()) +
           " threads");
}

int RunCheck(const CommandContext& context) {
  Problems problems;
  for (const std::string& problem : context.config_problems) problems.Add(problem);
  const absl::StatusOr<std::string> directory = ModelDirectory(context.config());
  if (!directory.ok()) {
    problems.Add(std::string(directory.status().message()));
  } else {
    const auto model = model::LoadModel(*directory);
    problems.Add("checkpoint", model.status());
    CheckTokenizer(*directory, model.ok() ? model->get() : nullptr, problems);
    if (model.ok()) {
      PrintModel(context.config(), **model, context.out);
      CheckKernels(context.config(), **model, context.out, problems);
      PrintMemory(context.config(), **model, context.out, problems);
    }
  }
  context.out.flush();
  if (problems.empty()) {
    context.out << "no problems found\n";
    return kExitOk;
  }
  problems.Print(context.err);
  return kExitFailure;
}

}  // namespace

Command CheckCommand() {
  return {
      .name = "check",
      .summary = "read a configuration and a checkpoint; print the memory plan and every problem",
      .description =
          "Reads the configuration and the checkpoint that it names, prints the model and the "
          "memory plan, and "
          "reports every problem at once. Serves nothing. Exits with 0 when there is no problem, "
          "else with 1.",
      .config = {"model", "server", "router", "prefill", "decode", "handoff", "kernels", "group",
                 "drain", "log", "metrics"},
      .reports_config_problems = true,
      .run = RunCheck};
}

}  // namespace baton::server
