#include "server/main_embedded.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "transport/inproc/inproc_transport.h"

namespace baton::server {
namespace {

constexpr char kLoopback[] = "127.0.0.1:0";

// What handoff.transport means in one process.
absl::StatusOr<std::string> CarrierOf(const Config& config, const GpuPlan& plan) {
  const std::string& asked = config.handoff().transport();
  const bool has_groups = plan.prefill.size() + plan.decode.size() > 2;
  if (asked == "auto") return has_groups ? "nccl" : "inproc";
  if (asked != "nccl" || plan.apart) return asked;
  if (plan.prefill.empty()) {
    return absl::InvalidArgumentError(
        "handoff.transport: nccl connects GPUs, and kernels.backend is not cuda; set it to auto");
  }
  return absl::InvalidArgumentError(
      "handoff.transport: nccl connects different GPUs, and both workers are on the only one that "
      "this process sees; set it to auto, which copies within the process, or show it another "
      "(CUDA_VISIBLE_DEVICES)");
}

// The ranks of one role, with endpoints that reach those of the other.
class RankMaker {
 public:
  RankMaker(const Config& config, const ModelFiles& files, const Log& log)
      : config_(config), files_(files), log_(log) {
    // Threads of this process, also where a file says how its ranks would meet as processes.
    config_.mutable_prefill()->clear_group_addresses();
    config_.mutable_decode()->clear_group_addresses();
    // Both ends are here, so nobody else needs to reach them; one port cannot serve all.
    config_.mutable_handoff()->mutable_ucx()->set_listen_port(0);
  }

  absl::Status Plan() {
    BATON_ASSIGN_OR_RETURN(plan_, PlanGpus(config_, transport::CountGpus()));
    BATON_ASSIGN_OR_RETURN(const std::string carrier, CarrierOf(config_, plan_));
    config_.mutable_handoff()->set_transport(carrier);
    if (!plan_.apart) {  // prefill and decode share a GPU
      v1::Cuda& cuda = *config_.mutable_kernels()->mutable_cuda();
      cuda.set_memory_fraction(cuda.memory_fraction() / 2);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<EmbeddedRank>> Make(RunnerRole role) {
    BATON_ASSIGN_OR_RETURN(const model::RunnerOptions options,
                           RunnerOptionsFor(config_, role, *files_.model));
    const std::vector<int>& gpus = role == RunnerRole::kPrefill ? plan_.prefill : plan_.decode;
    std::vector<EmbeddedRank> ranks(static_cast<size_t>(RanksOf(config_, role)));
    BATON_RETURN_IF_ERROR(FormGroup(role, options, gpus, ranks));
    for (size_t i = 0; i < ranks.size(); ++i) {
      BATON_RETURN_IF_ERROR(
          Complete(role, i, gpus.empty() ? 0 : gpus[i], options, fabric_, ranks[i]));
    }
    return ranks;
  }

 private:
  absl::Status FormGroup(RunnerRole role, const model::RunnerOptions& options,
                         std::span<const int> gpus, std::vector<EmbeddedRank>& ranks) {
    if (ranks.size() == 1) {
      ranks[0].collectives = GroupOfOne(options);
      return absl::OkStatus();
    }
    std::vector<std::unique_ptr<transport::GpuPlace>> places;
    for (const int gpu : gpus) {
      BATON_ASSIGN_OR_RETURN(places.emplace_back(), transport::CreateGpuPlace(gpu));
    }
    if (role == RunnerRole::kPrefill) {
      BATON_ASSIGN_OR_RETURN(auto group, FormThreadGroup(config_, role, places, clock_));
      for (size_t i = 0; i < ranks.size(); ++i) ranks[i].collectives = std::move(group[i]);
    } else {
      BATON_ASSIGN_OR_RETURN(auto group,
                             DecodeThreadGroup(config_, files_.description, places, clock_));
      for (size_t i = 0; i < ranks.size(); ++i) ranks[i].group = std::move(group[i]);
    }
    for (size_t i = 0; i < places.size(); ++i) ranks[i].place = std::move(places[i]);
    return absl::OkStatus();
  }

  absl::Status Complete(RunnerRole role, size_t number, int gpu, model::RunnerOptions options,
                        transport::InprocFabric& fabric, EmbeddedRank& rank) {
    const Log log = log_.With({{"component", RoleName(role)}, {"rank", number}});
    options.device.gpu = gpu;
    options.upload_progress = LogUpload(log);
    if (rank.place != nullptr) options.device.queue = rank.place->queue();
    options.group.overlap_rows = 0;
    options.group.collectives = rank.collectives.get();
    if (rank.group != nullptr) {
      options.group.collectives = rank.group->seat.get();
      options.group.stepped = true;
    }
    BATON_ASSIGN_OR_RETURN(rank.runner, model::CreateRunner(files_.model, options));
    if (config_.handoff().transport() == "inproc") {
      rank.transport = fabric.NewEndpoint(absl::StrCat(RoleName(role), "-", number));
      return absl::OkStatus();
    }
    BATON_ASSIGN_OR_RETURN(rank.transport,
                           MakeProcessTransport(config_, role, options.device, rank.place.get(),
                                                kLoopback, clock_, log));
    return absl::OkStatus();
  }

  Config config_;
  const ModelFiles& files_;
  const Log log_;
  const std::shared_ptr<Clock> clock_ = std::make_shared<MonotonicClock>();
  GpuPlan plan_;
  transport::InprocFabric fabric_;
};

}  // namespace

absl::StatusOr<GpuPlan> PlanGpus(const Config& config, int gpus) {
  GpuPlan plan;
  if (config.kernels().backend() != "cuda") return plan;
  plan.prefill.resize(static_cast<size_t>(RanksOf(config, RunnerRole::kPrefill)));
  plan.decode.resize(static_cast<size_t>(RanksOf(config, RunnerRole::kDecode)));
  const size_t ranks = plan.prefill.size() + plan.decode.size();
  plan.apart = ranks <= static_cast<size_t>(std::max(gpus, 0));
  // Without any GPU the device's own error says more.
  if (!plan.apart && (ranks == 2 || gpus == 0)) return plan;
  if (!plan.apart) {
    return absl::InvalidArgumentError(absl::StrCat(
        "each rank needs a GPU of its own: ", plan.prefill.size(), " of prefill and ",
        plan.decode.size(), " of decode want ", ranks, ", and this process sees ", gpus,
        "; lower --prefill.ranks or --decode.ranks, or show it more of the machine's GPUs "
        "(CUDA_VISIBLE_DEVICES)"));
  }
  std::iota(plan.prefill.begin(), plan.prefill.end(), 0);
  std::iota(plan.decode.begin(), plan.decode.end(), static_cast<int>(plan.prefill.size()));
  return plan;
}

absl::StatusOr<EmbeddedParts> MakeEmbeddedParts(const Config& config, const ModelFiles& files,
                                                const Log& log) {
  EmbeddedParts parts;
  parts.model = files.description;
  BATON_ASSIGN_OR_RETURN(parts.tokenizer, model::Tokenizer::Load(files.model->directory));
  RankMaker maker(config, files, log);
  BATON_RETURN_IF_ERROR(maker.Plan());
  BATON_ASSIGN_OR_RETURN(parts.prefill_ranks, maker.Make(RunnerRole::kPrefill));
  BATON_ASSIGN_OR_RETURN(parts.decode_ranks, maker.Make(RunnerRole::kDecode));
  for (EmbeddedRank& rank : parts.prefill_ranks) {
    rank.transport = WithFaults(config, std::move(rank.transport));
  }
  parts.group_timeout = Duration::Millis(config.group().timeout_ms());
  parts.prefill_poll_interval = FaultPollInterval(config);
  parts.prefill = PrefillLoopOptionsFor(config);
  parts.decode = DecodeLoopOptionsFor(config, files.description);
  parts.router = RouterServerOptionsFor(config);
  return parts;
}

}  // namespace baton::server
