#include "server/main_groups.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/build_info.h"
#include "base/host_port.h"
#include "base/status_macros.h"
#include "base/thread.h"
#include "model/runner_decorator.h"
#include "server/main_roles.h"
#include "transport/inproc/inproc_group.h"
#include "transport/ucx/ucx_group.h"

namespace baton::server {
namespace {

// A signal is noticed between two attempts to form the group.
constexpr Duration kJoinAttempt = Duration::Seconds(2);
constexpr Duration kTellAgain = Duration::Seconds(15);
constexpr Duration kPause = Duration::Seconds(1);

const google::protobuf::RepeatedPtrField<std::string>& AddressesOf(const Config& config,
                                                                   RunnerRole role) {
  return role == RunnerRole::kPrefill ? config.prefill().group_addresses()
                                      : config.decode().group_addresses();
}

// What the ranks must have in common beside the model, in words: a rank that differs sees them.
std::string Agreement(const Config& config, const std::string& model_hash,
                      const model::RunnerOptions& options) {
  const bool cpu = options.device.backend == kernels::BackendKind::kCpu;
  std::string text = absl::StrCat(
      model_hash, " kv_format=", config.model().kv_format(), " page_tokens=", options.page_tokens,
      " backend=", kernels::BackendName(options.device.backend), " isa=",
      cpu ? kernels::IsaName(std::min(options.device.max_isa, kernels::DetectIsa())) : "none",
      " redundant_experts=", options.group.redundant_experts);
  if (options.device.backend == kernels::BackendKind::kCuda) {
    absl::StrAppend(&text, " dense_gemm=", config.kernels().cuda().dense_gemm(),
                    " warpgroups=", config.kernels().cuda().warpgroups());
  }
  if (options.group.split == model::Split::kTensor) {
    // They run the same passes over the same pages.
    absl::StrAppend(&text, " chunk_tokens=", options.max_batch_rows,
                    " pages=", options.total_pages);
  }
  return text;
}

// A rank listens for the others at its own address if it has one.
absl::StatusOr<std::unique_ptr<transport::TcpRendezvous>> MeetingPlace(
    const Config& config, RunnerRole role, int32_t rank, transport::GpuPlace* place,
    std::shared_ptr<Clock> clock, const Log& log) {
  const auto& addresses = AddressesOf(config, role);
  const v1::Ucx& network = config.handoff().ucx();
  transport::UcxGroupOptions options;
  options.addresses.assign(addresses.begin(), addresses.end());
  options.tls = network.tls();
  options.net_devices = network.net_devices();
  options.listen_ip = network.listen_ip();
  options.log = log;
  if (rank < addresses.size()) {
    if (options.listen_ip.empty()) options.listen_ip = SpecificIp(addresses[rank]);
    const std::string port = SplitHostPort(addresses[rank])->port;  // checked by the schema
    std::from_chars(port.data(), port.data() + port.size(), options.listen_port);
  }
  if (place != nullptr) return place->NewRendezvous(options, std::move(clock));
  return transport::CreateUcxRendezvous(options, std::move(clock));
}

}  // namespace

absl::StatusOr<std::unique_ptr<transport::GpuPlace>> GpuPlaceOfProcess(
    const Config& config, RunnerRole role, int32_t rank, model::RunnerOptions& options) {
  if (options.device.backend != kernels::BackendKind::kCuda || RanksOf(config, role) == 1) {
    return nullptr;
  }
  BATON_ASSIGN_OR_RETURN(std::unique_ptr<transport::GpuPlace> place,
                         transport::CreateGpuPlace(rank % std::max(1, transport::CountGpus())));
  options.device.gpu = place->gpu();
  options.device.queue = place->queue();
  return place;
}

absl::StatusOr<std::vector<std::unique_ptr<transport::Rendezvous>>> MeetAsThreads(
    int32_t ranks, std::span<const std::unique_ptr<transport::GpuPlace>> places,
    std::shared_ptr<Clock> clock) {
  std::vector<std::unique_ptr<transport::Rendezvous>> all;
  if (places.empty()) {
    transport::InprocGroups groups(std::move(clock));
    for (int32_t rank = 0; rank < ranks; ++rank) all.push_back(groups.NewRendezvous());
    return all;
  }
  std::vector<std::unique_ptr<transport::TcpRendezvous>> made;
  std::vector<std::string> addresses;
  transport::UcxGroupOptions options;
  options.listen_ip = "127.0.0.1";
  for (const auto& place : places) {
    BATON_ASSIGN_OR_RETURN(made.emplace_back(), place->NewRendezvous(options, clock));
    addresses.push_back(absl::StrCat(options.listen_ip, ":", made.back()->port()));
  }
  for (auto& rendezvous : made) {
    rendezvous->SetAddresses(addresses);
    all.push_back(std::move(rendezvous));
  }
  return all;
}

std::unique_ptr<transport::Collectives> GroupOfOne(const model::RunnerOptions& options) {
  if (options.group.dispatch == model::Dispatch::kActivations) return nullptr;
  return transport::MakeSoloCollectives();
}

absl::StatusOr<std::vector<std::unique_ptr<transport::Collectives>>> FormThreadGroup(
    const Config& config, RunnerRole role,
    std::span<const std::unique_ptr<transport::GpuPlace>> places, std::shared_ptr<Clock> clock) {
  using Joined = absl::StatusOr<std::unique_ptr<transport::Collectives>>;
  const int32_t ranks = RanksOf(config, role);
  std::vector<std::unique_ptr<transport::Collectives>> group(static_cast<size_t>(ranks));
  BATON_ASSIGN_OR_RETURN(const auto rendezvous, MeetAsThreads(ranks, places, std::move(clock)));
  std::vector<Joined> joined(group.size());
  {
    std::vector<Thread> threads;
    for (int32_t rank = 0; rank < ranks; ++rank) {
      threads.emplace_back("join-" + std::to_string(rank), [&, rank] {
        const size_t at = static_cast<size_t>(rank);
        joined[at] =
            rendezvous[at]->Join({.group_id = RoleName(role), .world_size = ranks, .rank = rank});
      });
    }
  }
  for (size_t rank = 0; rank < group.size(); ++rank) {
    BATON_ASSIGN_OR_RETURN(group[rank], std::move(joined[rank]));
  }
  return group;
}

absl::StatusOr<int32_t> RankOfProcess(const Config& config, RunnerRole role,
                                      const std::string& host_name) {
  const int32_t ranks = RanksOf(config, role);
  const std::string section = RoleName(role);
  if (ranks == 1) return 0;
  if (!RanksAreProcesses(config, role)) {
    return absl::InvalidArgumentError(
        absl::StrCat(section, ".ranks: ", ranks,
                     " ranks are as many processes, which must find each other; set ", section,
                     ".group_addresses to the address of rank 0, or of each rank"));
  }
  const int32_t configured =
      role == RunnerRole::kPrefill ? config.prefill().rank() : config.decode().rank();
  if (configured >= 0) return configured;  // checked with the configuration
  const size_t digits = host_name.find_last_not_of("0123456789") + 1;
  int32_t rank = -1;
  const char* const end = host_name.data() + host_name.size();
  const auto parsed = std::from_chars(host_name.data() + digits, end, rank);
  if (parsed.ec == std::errc() && rank < ranks) return rank;
  return absl::InvalidArgumentError(absl::StrCat(
      section, ".rank: not set, and the name of this host, \"", host_name,
      "\", does not end in a number from 0 to ", ranks - 1, "; set ", section, ".rank (BATON_",
      role == RunnerRole::kPrefill ? "PREFILL" : "DECODE", "_RANK) to this process's number"));
}

absl::StatusOr<std::unique_ptr<transport::Collectives>> JoinPrefillGroup(
    const Config& config, int32_t rank, const std::string& model_hash,
    const model::RunnerOptions& options, transport::GpuPlace* place, std::shared_ptr<Clock> clock,
    TerminationSignals& signals, const Log& log) {
  constexpr RunnerRole role = RunnerRole::kPrefill;
  BATON_ASSIGN_OR_RETURN(const std::unique_ptr<transport::TcpRendezvous> rendezvous,
                         MeetingPlace(config, role, rank, place, clock, log));
  transport::GroupOptions group{.group_id = RoleName(role),
                                .world_size = RanksOf(config, role),
                                .rank = rank,
                                .revision = std::string(Revision()),
                                .model_hash = Agreement(config, model_hash, options)};
  const Tick give_up = clock->Now() + Duration::Millis(config.group().join_timeout_ms());
  std::string told;
  Tick tell_again;
  while (true) {  // until give_up
    group.timeout = std::min(kJoinAttempt, give_up - clock->Now());
    absl::StatusOr<std::unique_ptr<transport::Collectives>> joined = rendezvous->Join(group);
    if (joined.ok()) {
      log.Info("the group stands", {{"role", RoleName(role)},
                                    {"rank", rank},
                                    {"ranks", group.world_size},
                                    {"generation", (*joined)->generation()}});
      return joined;
    }
    const Tick now = clock->Now();
    if (!absl::IsDeadlineExceeded(joined.status()) || now >= give_up) return joined.status();
    if (signals.WaitFor(Duration())) {
      return absl::CancelledError("told to end while waiting for the other ranks");
    }
    const std::string waiting(joined.status().message());
    if (waiting == told && now < tell_again) continue;
    log.Info("waiting for the other ranks", {{"rank", rank}, {"status", waiting}});
    told = waiting;
    tell_again = now + kTellAgain;
  }
}

class PassWatch::Watched final : public model::RunnerDecorator {
 public:
  Watched(PassWatch& watch, std::unique_ptr<model::Runner> runner)
      : RunnerDecorator(*runner), watch_(watch), runner_(std::move(runner)) {}

  absl::Status Run(const scheduler::BatchPlan& plan, model::LayerObserver* observer,
                   scheduler::StepOutput* output) override {
    watch_.running_.store(true);
    const absl::Status status = RunnerDecorator::Run(plan, observer, output);
    watch_.Restart();
    watch_.running_.store(false);
    return status;
  }

 private:
  PassWatch& watch_;
  const std::unique_ptr<model::Runner> runner_;
};

std::unique_ptr<model::Runner> PassWatch::Watch(std::unique_ptr<model::Runner> runner) {
  return std::make_unique<Watched>(*this, std::move(runner));
}

bool PassWatch::paused() const {
  return !running_.load() && clock_.Now().nanos() - last_end_nanos_.load() >= kPause.nanos();
}

decode_worker::ExpertGroupOptions ExpertGroupOptionsFor(const Config& config,
                                                        const ModelDescription& model,
                                                        int32_t rank) {
  const v1::Rebalance& rebalance = config.decode().rebalance();
  decode_worker::ExpertGroupOptions options;
  options.group.group_id = RoleName(RunnerRole::kDecode);
  options.group.world_size = RanksOf(config, RunnerRole::kDecode);
  options.group.rank = rank;
  options.group.revision = std::string(Revision());
  options.group.model_hash = model.hash;
  options.timeout = Duration::Millis(config.group().timeout_ms());
  options.half_life_steps = rebalance.half_life_steps();
  options.copy_bytes_per_second = rebalance.copy_mb_per_s() << 20;
  options.rebalance.automatic = rebalance.automatic();
  options.rebalance.interval = Duration::Millis(rebalance.interval_ms());
  options.rebalance.min_gain = rebalance.min_gain();
  options.rebalance.max_staged = rebalance.max_staged();
  options.rebalance.prepare_timeout = Duration::Millis(rebalance.prepare_timeout_ms());
  options.rebalance.survive_rank_loss = rebalance.survive_rank_loss();
  return options;
}

absl::StatusOr<std::vector<std::unique_ptr<decode_worker::DecodeGroup>>> DecodeThreadGroup(
    const Config& config, const ModelDescription& model,
    std::span<const std::unique_ptr<transport::GpuPlace>> places, std::shared_ptr<Clock> clock) {
  const int32_t ranks = RanksOf(config, RunnerRole::kDecode);
  std::vector<std::unique_ptr<decode_worker::DecodeGroup>> group(static_cast<size_t>(ranks));
  if (ranks == 1) return group;
  BATON_ASSIGN_OR_RETURN(auto rendezvous, MeetAsThreads(ranks, places, std::move(clock)));
  for (int32_t rank = 0; rank < ranks; ++rank) {
    auto& own = group[static_cast<size_t>(rank)];
    own = std::make_unique<decode_worker::DecodeGroup>();
    own->seat = std::make_unique<transport::GroupSeat>(ranks, rank);
    own->rendezvous = std::move(rendezvous[static_cast<size_t>(rank)]);
    own->options = ExpertGroupOptionsFor(config, model, rank);
  }
  return group;
}

absl::StatusOr<std::unique_ptr<decode_worker::DecodeGroup>> DecodeProcessGroup(
    const Config& config, const ModelDescription& model, int32_t rank,
    const model::RunnerOptions& options, transport::GpuPlace* place, std::shared_ptr<Clock> clock,
    const Log& log) {
  auto group = std::make_unique<decode_worker::DecodeGroup>();
  group->seat = std::make_unique<transport::GroupSeat>(RanksOf(config, RunnerRole::kDecode), rank);
  BATON_ASSIGN_OR_RETURN(group->rendezvous, MeetingPlace(config, RunnerRole::kDecode, rank, place,
                                                         std::move(clock), log));
  group->options = ExpertGroupOptionsFor(config, model, rank);
  group->options.group.model_hash = Agreement(config, model.hash, options);
  group->options.form_timeout = Duration::Millis(config.group().join_timeout_ms());
  return group;
}

}  // namespace baton::server
