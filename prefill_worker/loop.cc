#include "prefill_worker/loop.h"

#include <algorithm>
#include <type_traits>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace baton::prefill_worker {
absl::StatusOr<std::unique_ptr<PrefillLoop>> PrefillLoop::Create(
    const PrefillLoopOptions& options, Clock& clock, model::Runner& runner,
    std::unique_ptr<transport::KvTransport> transport, PrefillInbox& inbox, PrefillOutbox& outbox,
    PrefillObserver& observer) {
  const model::RunnerInfo& info = runner.info();
  scheduler::PrefillPlannerOptions planner = options.planner;
  planner.page_tokens = info.page_tokens;
  planner.total_pages = info.total_pages;
  planner.max_positions = info.max_positions;
  if (planner.page_tokens < 1 || planner.total_pages < 1 || planner.max_positions < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("the runner offers ", planner.total_pages, " pages of ", planner.page_tokens,
                     " tokens for ", planner.max_positions, " positions; each must be at least 1"));
  }
  if (planner.slots < 1 || planner.chunk_tokens < 1) {
    return absl::InvalidArgumentError(absl::StrCat("slots is ", planner.slots, " and chunk_tokens ",
                                                   planner.chunk_tokens,
                                                   "; each must be at least 1"));
  }
  transport->SetWakeup([&inbox] { inbox.Wake(); });
  BATON_ASSIGN_OR_RETURN(
      std::unique_ptr<HandoffSender> sender,
      HandoffSender::Create(options.handoff, clock, runner, std::move(transport)));
  runner.SetWakeup([&inbox] { inbox.Wake(); });
  return std::unique_ptr<PrefillLoop>(new PrefillLoop(planner, clock, runner, std::move(sender),
                                                      options.group, inbox, outbox, observer));
}

PrefillLoop::PrefillLoop(const scheduler::PrefillPlannerOptions& options, Clock& clock,
                         model::Runner& runner, std::unique_ptr<HandoffSender> sender,
                         GroupLink* group, PrefillInbox& inbox, PrefillOutbox& outbox,
                         PrefillObserver& observer)
    : clock_(clock),
      runner_(runner),
      inbox_(inbox),
      outbox_(outbox),
      observer_(observer),
      planner_(options),
      sender_(std::move(sender)) {
  if (group != nullptr) leader_.emplace(*group, *sender_);
}

scheduler::TickResult PrefillLoop::Tick() {
  // events_ begins with the last pass's result. The inbox is drained before the transport is
  // polled: a wake-up in between then ends the next wait.
  inbox_.DrainInto(events_);
  bool busy = sender_->Progress();
  std::vector<scheduler::HandoffFinished> over = sender_->TakeFinished();
  if (leader_.has_value()) over = leader_->Merge(over);
  for (scheduler::HandoffFinished& finished : over) events_.emplace_back(std::move(finished));
  for (const RequestKey key : sender_->TakeProgressed()) {
    events_.emplace_back(scheduler::HandoffProgressed{key});
  }
  busy = busy || !events_.empty();

  sink_.Clear();
  planner_.Step(clock_.Now(), events_, sink_);
  events_.clear();
  for (scheduler::PrefillAction& action : sink_.actions) Execute(action);
  if (leader_.has_value() && leader_->wants_exchange()) {
    // A broken group shows in the next pass, which fails.
    leader_->Announce(nullptr).IgnoreError();
    busy = true;
  }
  observer_.OnStep(sink_.report);
  // Idle: nobody waits, so this is when to look for contradictions.
  if (!busy && sink_.actions.empty()) CheckInvariants();

  return {busy || !events_.empty() || sender_->has_finished(),
          std::min(planner_.NextWake(), sender_->NextWake(clock_.Now()))};
}

void PrefillLoop::Execute(scheduler::PrefillAction& action) {
  std::visit(
      [this](auto& a) {
        using Action = std::decay_t<decltype(a)>;
        if constexpr (std::is_same_v<Action, scheduler::OpenHandoff>) {
          sender_->Open(a);
          if (leader_.has_value()) leader_->Open(a);
        } else if constexpr (std::is_same_v<Action, scheduler::AbortHandoff>) {
          sender_->Abort(a.key);
          if (leader_.has_value()) leader_->Abort(a.key);
        } else if constexpr (std::is_same_v<Action, scheduler::RunPrefillPass>) {
          RunPass(a);
        } else {
          outbox_.Send(std::move(a));
        }
      },
      action);
}

void PrefillLoop::RunPass(scheduler::RunPrefillPass& pass) {
  scheduler::PassFinished finished;
  if (leader_.has_value()) finished.status = leader_->Announce(&pass);
  sender_->BeginPass(std::move(pass.handoffs));
  if (finished.status.ok()) {
    finished.status = runner_.Run(pass.plan, sender_.get(), &finished.output);
  }
  finished.finished_at = clock_.Now();
  sender_->EndPass();
  events_.emplace_back(std::move(finished));
}

PrefillLoop::~PrefillLoop() {
  // The followers end with the loop that leads them; a group that is broken ends by itself.
  if (leader_.has_value()) leader_->Stop().IgnoreError();
}

scheduler::PrefillStatus PrefillLoop::initial_status() const { return planner_.status(); }

void PrefillLoop::CheckInvariants() const {
  planner_.CheckInvariants();
  sender_->CheckInvariants();
}

}  // namespace baton::prefill_worker
