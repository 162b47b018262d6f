#include "decode_worker/expert_group.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "scheduler/expert_routing.h"

namespace baton::decode_worker {
namespace {

scheduler::ExpertTopology TopologyOf(const ExpertGroupOptions& options,
                                     const model::ExpertHost& host) {
  scheduler::ExpertTopology topology = host.topology();
  topology.ranks_per_node = options.rebalance.topology.ranks_per_node;
  topology.domains = options.rebalance.topology.domains;
  return topology;
}

// Ranks that go about their passes differently do not find each other.
ExpertGroupOptions Complete(ExpertGroupOptions options, const model::ExpertHost& host) {
  absl::StrAppend(&options.group.model_hash, ", ", host.pass_settings(), ", ",
                  host.topology().slots_per_rank, " slots");
  return options;
}

size_t Pairs(const scheduler::ExpertTopology& topology) {
  return static_cast<size_t>(topology.layers) * static_cast<size_t>(topology.experts);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ExpertGroup>> ExpertGroup::Create(
    const ExpertGroupOptions& options, Clock& clock, model::Runner& runner,
    transport::GroupSeat& seat, transport::Rendezvous& rendezvous, const Log& log) {
  BATON_CHECK_MSG(runner.experts() != nullptr, "the runner is of no expert-parallel group");
  BATON_RETURN_IF_ERROR(transport::CheckGroupOptions(options.group));
  if (options.steps_per_count < 1 || !(options.half_life_steps > 0) ||
      options.copy_bytes_per_second < 0 || options.rebalance.max_staged < 1 ||
      options.rebalance.switch_lead_steps < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "steps_per_count is ", options.steps_per_count, ", half_life_steps ",
        options.half_life_steps, ", copy_bytes_per_second ", options.copy_bytes_per_second,
        ", max_staged ", options.rebalance.max_staged, ", switch_lead_steps ",
        options.rebalance.switch_lead_steps, "; expected at least 1, above 0, 0, 1 and 1"));
  }
  const scheduler::ExpertTopology shape = runner.experts()->topology();
  if (shape.ranks != options.group.world_size || seat.world_size() != shape.ranks ||
      seat.rank() != options.group.rank) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", options.group.rank, " of a group of ", options.group.world_size,
                     " ranks has a runner for ", shape.ranks, " ranks and the seat of rank ",
                     seat.rank(), " of ", seat.world_size()));
  }
  BATON_RETURN_IF_ERROR(scheduler::CheckTopology(TopologyOf(options, *runner.experts())));
  return std::unique_ptr<ExpertGroup>(
      new ExpertGroup(options, clock, runner, seat, rendezvous, log));
}

ExpertGroup::ExpertGroup(const ExpertGroupOptions& options, Clock& clock, model::Runner& runner,
                         transport::GroupSeat& seat, transport::Rendezvous& rendezvous,
                         const Log& log)
    : RunnerDecorator(runner),
      options_(Complete(options, *runner.experts())),
      topology_(TopologyOf(options, *runner.experts())),
      clock_(clock),
      runner_(runner),
      host_(*runner.experts()),
      seat_(seat),
      rendezvous_(rendezvous),
      log_(log.With({{"group", options.group.group_id}})),
      exchange_(seat, options.timeout),
      mail_(static_cast<size_t>(options.group.world_size)),
      copier_(host_, clock, options.copy_bytes_per_second,
              [this] {
                if (wakeup_) wakeup_();
              }),
      load_(topology_.layers, topology_.experts, options.half_life_steps),
      choices_(Pairs(topology_)),
      sums_(Pairs(topology_)),
      placements_([this] {
        if (wakeup_) wakeup_();
      }) {}

ExpertGroup::~ExpertGroup() { seat_.Leave(); }

void ExpertGroup::SetWakeup(const std::function<void()>& wakeup) {
  wakeup_ = wakeup;
  seat_.SetWakeup(wakeup);
}

absl::Status ExpertGroup::Run(const scheduler::BatchPlan& plan, model::LayerObserver* observer,
                              scheduler::StepOutput* output) {
  // Each round but the last has lost a rank, taken some in, or found all for the first time.
  const int32_t max_rounds = 2 * ranks() + 2;
  for (int32_t round = 0; round < max_rounds; ++round) {
    if (!failed_.ok()) return failed_;
    if (!formed()) BATON_RETURN_IF_ERROR(FormFirst());
    const absl::StatusOr<bool> ran = Step(plan, observer, output);
    if (!failed_.ok()) return failed_;
    if (ran.ok()) {
      if (*ran) return absl::OkStatus();
      BATON_RETURN_IF_ERROR(Admit());
    } else if (seat_.health().ok()) {
      return Fail(ran.status());  // the others are well: it is this rank that cannot go on
    } else {
      BATON_RETURN_IF_ERROR(Recover());
    }
  }
  return Fail(absl::UnavailableError("the group's ranks come and go without an end"));
}

bool ExpertGroup::WantsPass() {
  if (!failed_.ok()) return false;
  if (!formed() || !seat_.health().ok()) return true;
  TakeRequests();
  TakeCopies();
  TakePlacements();
  LookForReturned();
  if (leads() && (!events_.empty() || clock_.Now() >= planner_->NextWake())) StepPlanner();
  return !failed_.ok() || seat_.PeerWaits() || HasMail() || form_anew_.has_value() ||
         (leads() && planner_->WantsSteps());
}

// --- a step ---------------------------------------------------------------------------------

// False: the group is to be formed anew before the pass.
absl::StatusOr<bool> ExpertGroup::Step(const scheduler::BatchPlan& plan,
                                       model::LayerObserver* observer,
                                       scheduler::StepOutput* output) {
  StepHeader header;
  header.notice = PrepareStep();
  BATON_RETURN_IF_ERROR(failed_);
  header.step = step_;
  header.version = slots_->active().version;
  header.rows = plan.total_rows;
  BATON_RETURN_IF_ERROR(exchange_.Run(header, mail_));
  for (std::vector<std::byte>& of_rank : mail_) of_rank.clear();
  BATON_RETURN_IF_ERROR(SwitchIfDue());
  BATON_RETURN_IF_ERROR(ReadMail());
  ++step_;
  if (form_anew_.has_value()) return false;
  if (exchange_.rows() == 0) {
    output->tokens.clear();
    output->failures.clear();
    CheckInvariants();
    return true;
  }
  if (uncounted_steps_ >= options_.steps_per_count) BATON_RETURN_IF_ERROR(SumChoices());
  ++uncounted_steps_;
  host_.BeginStep(exchange_.most_rows());
  BATON_RETURN_IF_ERROR(runner_.Run(plan, observer, output));
  return true;
}

scheduler::SwitchNotice ExpertGroup::PrepareStep() {
  TakeRequests();
  TakeCopies();
  TakePlacements();
  LookForReturned();
  notice_ = {};
  if (leads()) {
    events_.emplace_back(scheduler::StepStarting{step_});
    StepPlanner();
  }
  return notice_;
}

absl::Status ExpertGroup::SwitchIfDue() {
  const uint64_t before = slots_->active().version;
  BATON_RETURN_IF_ERROR(slots_->BeginStep(step_, exchange_.header(leader_).notice));
  if (slots_->active().version == before) return absl::OkStatus();
  ++report_.switches;
  return Install();
}

absl::Status ExpertGroup::Install() {
  BATON_RETURN_IF_ERROR(host_.Install(slots_->active()));
  placed_at_ = clock_.Now();
  Publish();
  return absl::OkStatus();
}

absl::Status ExpertGroup::ReadMail() {
  for (int32_t from = 0; from < ranks(); ++from) {
    const std::span<const std::byte> mail = exchange_.mail_from(from);
    if (mail.empty()) continue;
    absl::StatusOr<std::vector<ExpertMessage>> messages = TakeMessages(mail, topology_);
    if (!messages.ok()) {
      seat_.Abort(
          absl::InternalError(absl::StrCat("from rank ", from, ": ", messages.status().message())));
      return seat_.health();
    }
    for (const ExpertMessage& message : *messages) {
      std::visit([this](const auto& m) { Receive(m); }, message);
    }
  }
  return absl::OkStatus();
}

// All ranks have seen the same headers, so all are here in the same step.
absl::Status ExpertGroup::SumChoices() {
  host_.TakeChoices(choices_);
  for (size_t i = 0; i < choices_.size(); ++i) {
    sums_[i] = static_cast<float>(std::exchange(choices_[i], 0));
  }
  BATON_RETURN_IF_ERROR(seat_.AllReduceSum(std::as_writable_bytes(std::span(sums_)),
                                           transport::ReduceType::kF32, options_.timeout));
  const size_t experts = static_cast<size_t>(topology_.experts);
  std::vector<int32_t> tokens(experts);
  for (int32_t layer = 0; layer < topology_.layers; ++layer) {
    const float* const of_layer = sums_.data() + static_cast<size_t>(layer) * experts;
    for (size_t e = 0; e < experts; ++e) {
      tokens[e] = static_cast<int32_t>(std::lround(of_layer[e]));
    }
    load_.Add(layer, tokens);
  }
  load_.Advance(std::exchange(uncounted_steps_, 0));
  loads_ = std::make_shared<const std::vector<double>>(load_.Loads());
  if (leads()) events_.emplace_back(scheduler::LoadsMeasured{loads_});
  Publish();
  return absl::OkStatus();
}

bool ExpertGroup::HasMail() const {
  return std::any_of(mail_.begin(), mail_.end(), [](const auto& mail) { return !mail.empty(); });
}

std::vector<bool> ExpertGroup::Present() const {
  std::vector<bool> present(static_cast<size_t>(ranks()));
  for (int32_t r = 0; r < ranks(); ++r) present[static_cast<size_t>(r)] = seat_.is_present(r);
  return present;
}

bool CanSpare(const ExpertsView& view, int32_t rank) {
  std::vector<bool> others = view.active.live;
  others[static_cast<size_t>(rank)] = false;
  return scheduler::CountUncovered(*view.active.placement, others) == 0;
}

std::shared_ptr<const ExpertsView> ExpertGroup::View() const {
  std::lock_guard<std::mutex> lock(view_mutex_);
  return view_;
}

std::optional<ExpertsReport> ExpertGroup::TakeReport() {
  if (std::exchange(reported_, true)) return std::nullopt;
  return std::exchange(report_, {});
}

void ExpertGroup::RequestRebalance() {
  requested_.store(true);
  if (wakeup_) wakeup_();
}

void ExpertGroup::CheckInvariants() const {
  slots_->CheckInvariants();
  if (leads()) planner_->CheckInvariants();
}

}  // namespace baton::decode_worker
