#ifndef BATON_DECODE_WORKER_EXPERT_GROUP_H_
#define BATON_DECODE_WORKER_EXPERT_GROUP_H_

// A rank's membership in an expert-parallel group: the runner that the decode loop sees instead of
// the model's own. Around each pass it has the ranks step together (step_exchange.h), counts which
// experts are chosen, moves experts while tokens flow (scheduler/rebalance_planner.h on the leader,
// scheduler/expert_switch.h on every rank), and forms the group anew when a rank is lost or comes
// back. docs/expert-placement.md tells the whole story.
//
// A pass that fails because a rank was lost is run again once the others have formed the group
// anew: it writes the same latents into the same pages and gives the same tokens. So the loop sees
// a failed pass only when the group cannot go on; health() then says so for good, and this rank has
// left the group.
//
// Where nobody in the group has rows, a step is no more than its header. A pass waits for headers,
// mail and what it computes, never for a copy of an expert or the computation of a placement: these
// have threads of their own.
//
// One thread calls it (the loop's), except for what is marked "any thread".

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/log.h"
#include "decode_worker/expert_copier.h"
#include "decode_worker/expert_messages.h"
#include "decode_worker/expert_standing.h"
#include "decode_worker/placement_thread.h"
#include "decode_worker/step_exchange.h"
#include "model/expert_host.h"
#include "model/runner_decorator.h"
#include "scheduler/expert_load.h"
#include "scheduler/expert_switch.h"
#include "scheduler/rebalance_planner.h"
#include "transport/group/group.h"
#include "transport/group/group_seat.h"

namespace baton::decode_worker {

struct ExpertGroupOptions {
  // Which rank of which group this is. Its timeout and absent_ranks are filled in.
  transport::GroupOptions group;
  Duration timeout = transport::kDefaultCollectiveTimeout;  // of one exchange
  Duration form_timeout = Duration::Seconds(600);           // until all ranks have come, at first
  // Later on: a rank that does not come, though nobody knows it to be lost, is waited for half as
  // long; a host that keeps silent, as long; and everything in all at most three times as long.
  Duration reform_timeout = Duration::Seconds(2);
  Duration knock_interval = Duration::Millis(250);  // between looks for ranks that came back

  scheduler::RebalanceOptions rebalance;  // its topology's shape is filled in
  int32_t steps_per_count = 32;           // between two sums of the ranks' counts; >= 1
  double half_life_steps = 512;           // of the loads; > 0
  int64_t copy_bytes_per_second = 0;      // 0: no limit
};

// What a rank knows of its group's experts. Immutable.
struct ExpertsView {
  int32_t rank = 0;
  int32_t leader = 0;
  scheduler::ActiveExperts active;
  std::vector<bool> present;                         // [ranks]
  std::shared_ptr<const std::vector<double>> loads;  // [layers, experts]; null before the first sum
  Tick placed_at;                                    // since when `active` is in use here
  int32_t uncovered = 0;                             // as RebalanceReport
  int32_t on_one_rank = 0;
  double balancedness = 1;
  std::string last_rebalance;  // how the last one ended, in words; the leader's alone
};

// Every expert has a live replica on ranks other than `rank`.
bool CanSpare(const ExpertsView& view, int32_t rank);

// Counters since the last report; all but `switches` are the leader's.
struct ExpertsReport {
  uint32_t switches = 0;
  uint32_t copies = 0;                 // switched to
  uint32_t restored = 0;               // ranks taken back in
  uint32_t lost = 0;                   // ranks
  std::array<uint32_t, 4> ended = {};  // rebalances, by RebalanceEnd
};

class ExpertGroup final : public model::RunnerDecorator {
 public:
  // `runner` computes with `seat` for its Collectives, with RankGroup::stepped. The references
  // outlive the object. The ranks find each other in the first Run, which waits for them.
  // INVALID_ARGUMENT when options contradict themselves or the model.
  static absl::StatusOr<std::unique_ptr<ExpertGroup>> Create(const ExpertGroupOptions& options,
                                                             Clock& clock, model::Runner& runner,
                                                             transport::GroupSeat& seat,
                                                             transport::Rendezvous& rendezvous,
                                                             const Log& log);
  ~ExpertGroup() override;

  absl::Status Run(const scheduler::BatchPlan& plan, model::LayerObserver* observer,
                   scheduler::StepOutput* output) override;
  bool WantsPass() override;
  void SetWakeup(const std::function<void()>& wakeup) override;
  absl::Status health() const override { return failed_; }

  bool formed() const { return slots_.has_value(); }
  // What has happened since the last call; none where nothing of it or of View() has changed.
  std::optional<ExpertsReport> TakeReport();

  // Any thread. Null before the group was formed.
  std::shared_ptr<const ExpertsView> View() const;
  // Any thread: the leader looks for a better placement now, whatever it gains.
  void RequestRebalance();
  // Any thread: this rank is about to go. It waits for nobody to come any more, and does not form
  // the group anew when others go first.
  void Interrupt() { interrupted_.store(true); }

  // Aborts when slots or planner contradict themselves.
  void CheckInvariants() const;

 private:
  ExpertGroup(const ExpertGroupOptions& options, Clock& clock, model::Runner& runner,
              transport::GroupSeat& seat, transport::Rendezvous& rendezvous, const Log& log);

  // --- a step (expert_group.cc)
  absl::StatusOr<bool> Step(const scheduler::BatchPlan& plan, model::LayerObserver* observer,
                            scheduler::StepOutput* output);
  scheduler::SwitchNotice PrepareStep();
  absl::Status SwitchIfDue();
  absl::Status ReadMail();
  absl::Status SumChoices();
  absl::Status Install();
  void TakeRequests();
  void TakeCopies();
  void TakePlacements();
  void LookForReturned();
  bool HasMail() const;

  // --- messages and decisions (expert_group_messages.cc)
  void Receive(const scheduler::PrepareExperts& message);
  void Receive(const scheduler::PrepareEnded& message);
  void Receive(const scheduler::AbortPrepare& message);
  void Receive(const AskRebalance& message);
  void Receive(const FormAnew& message);
  void Send(int32_t rank, const ExpertMessage& message);  // to this rank: receives it
  void EndPrepare(uint64_t version, absl::Status status);
  void StepPlanner();
  void Carry(scheduler::ComputePlacement& action);
  void Carry(scheduler::SendPrepare& action);
  void Carry(scheduler::SendAbort& action);
  void Carry(scheduler::NameSwitch& action);
  void Carry(scheduler::RebalanceEnded& action);
  void Carry(scheduler::RankRestored& action);
  void Carry(scheduler::StopGroup& action);
  void Publish();

  // --- forming the group (expert_group_form.cc)
  absl::Status FormFirst();
  absl::Status Form(const std::vector<int>& guests, Duration timeout);
  absl::Status Recover();
  absl::Status CheckOwnPlace(const absl::Status& why);
  absl::Status Admit();
  absl::Status Agree();
  absl::Status Establish(const std::vector<Standing>& standings);
  absl::Status BeginAnew();
  absl::Status GoOn(const std::vector<Standing>& standings);
  absl::Status TellReturned(int32_t teller);
  absl::Status TakeOver(uint64_t next_version, const std::vector<bool>& stayed);
  absl::Status Fail(absl::Status why);

  int32_t rank() const { return options_.group.rank; }
  int32_t ranks() const { return options_.group.world_size; }
  bool leads() const { return planner_.has_value(); }
  std::vector<bool> Present() const;

  const ExpertGroupOptions options_;
  const scheduler::ExpertTopology topology_;
  Clock& clock_;
  model::Runner& runner_;
  model::ExpertHost& host_;
  transport::GroupSeat& seat_;
  transport::Rendezvous& rendezvous_;
  const Log log_;
  std::function<void()> wakeup_;

  absl::Status failed_;
  std::atomic<bool> interrupted_{false};
  std::atomic<bool> requested_{false};
  uint64_t step_ = 0;               // the next one
  std::vector<int> absent_;         // ranks that the group was formed without
  scheduler::ViewHistory history_;  // of the groups that this rank has been in
  Tick next_knock_;
  StepExchange exchange_;
  std::vector<std::vector<std::byte>> mail_;  // [ranks] for the next step
  std::optional<FormAnew> form_anew_;         // after this step

  int32_t leader_ = 0;
  std::optional<scheduler::ExpertSlots> slots_;  // none before the group was formed
  Tick placed_at_;
  ExpertCopier copier_;

  // Choices of the group's rows: the same on all ranks, whoever will lead.
  scheduler::ExpertLoad load_;
  int32_t uncounted_steps_ = 0;
  std::vector<int32_t> choices_;  // [layers, experts]
  std::vector<float> sums_;
  std::shared_ptr<const std::vector<double>> loads_;

  // The leader's.
  std::optional<scheduler::RebalancePlanner> planner_;
  std::vector<scheduler::RebalanceEvent> events_;  // what its next Step sees
  scheduler::RebalanceSink sink_;
  scheduler::SwitchNotice notice_;  // for the header of the step that begins
  PlacementThread placements_;
  std::string last_rebalance_;

  ExpertsReport report_;
  bool reported_ = true;  // nothing has changed since TakeReport
  mutable std::mutex view_mutex_;
  std::shared_ptr<const ExpertsView> view_;  // guarded by view_mutex_
};

}  // namespace baton::decode_worker

#endif  // BATON_DECODE_WORKER_EXPERT_GROUP_H_
