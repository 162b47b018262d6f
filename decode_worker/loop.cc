#include "decode_worker/loop.h"

#include <algorithm>
#include <type_traits>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace baton::decode_worker {

absl::StatusOr<std::unique_ptr<DecodeLoop>> DecodeLoop::Create(const DecodeLoopOptions& options,
                                                               Clock& clock, model::Runner& runner,
                                                               transport::KvTransport& transport,
                                                               DecodeInbox& inbox,
                                                               DecodeOutbox& outbox,
                                                               DecodeObserver& observer) {
  const model::RunnerInfo& info = runner.info();
  DecodeLoopOptions adapted = options;
  scheduler::DecodePlannerOptions& planner = adapted.planner;
  planner.page_tokens = info.page_tokens;
  planner.total_pages = info.total_pages;
  planner.max_positions = info.max_positions;
  planner.transport_address = transport.address();
  if (planner.page_tokens < 1 || planner.total_pages < 1 || planner.max_positions < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("the runner offers ", planner.total_pages, " pages of ", planner.page_tokens,
                     " tokens for ", planner.max_positions, " positions; each must be at least 1"));
  }
  if (planner.max_landings < 1 || planner.max_sequences < 1 || planner.reserve_output_tokens < 1 ||
      planner.pages_per_credit < 1 || options.max_transport_events < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_landings is ", planner.max_landings, ", max_sequences ", planner.max_sequences,
        ", reserve_output_tokens ", planner.reserve_output_tokens, ", pages_per_credit ",
        planner.pages_per_credit, ", max_transport_events ", options.max_transport_events,
        "; each must be at least 1"));
  }
  if (planner.max_sequences > planner.max_batch_rows) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_sequences is ", planner.max_sequences, " but a pass has max_batch_rows ",
                     planner.max_batch_rows, ": every sequence needs a row, so raise the latter"));
  }
  if (planner.first_epoch == 0) {
    return absl::InvalidArgumentError("first_epoch is 0; draw it at random, above 0");
  }
  transport.SetWakeup([&inbox] { inbox.Wake(); });
  runner.SetWakeup([&inbox] { inbox.Wake(); });
  return std::unique_ptr<DecodeLoop>(
      new DecodeLoop(adapted, clock, runner, transport, inbox, outbox, observer));
}

DecodeLoop::DecodeLoop(const DecodeLoopOptions& options, Clock& clock, model::Runner& runner,
                       transport::KvTransport& transport, DecodeInbox& inbox, DecodeOutbox& outbox,
                       DecodeObserver& observer)
    : max_transport_events_(options.max_transport_events),
      clock_(clock),
      runner_(runner),
      transport_(transport),
      inbox_(inbox),
      outbox_(outbox),
      observer_(observer),
      planner_(options.planner),
      landings_(runner) {}

scheduler::TickResult DecodeLoop::Tick() {
  // events_ begins with the last pass's result. The inbox is drained before the transport is
  // polled: a wake-up in between then ends the next wait.
  inbox_.DrainInto(events_);
  bool busy = PollTransport();
  busy = busy || !events_.empty();

  sink_.Clear();
  planner_.Step(clock_.Now(), events_, sink_);
  events_.clear();
  for (scheduler::DecodeAction& action : sink_.actions) Execute(action);
  // Not behind a pass of its own: its result may lead to the next one.
  if (events_.empty() && runner_.WantsPass()) {
    RunEmptyPass();
    busy = true;
  }
  observer_.OnStep(sink_.report, landings_.TakeReport());
  // Idle: nobody waits, so this is when to look for contradictions.
  if (!busy && sink_.actions.empty()) CheckInvariants();
  return {busy || !events_.empty(), planner_.NextWake()};
}

bool DecodeLoop::PollTransport() {
  transport_events_.clear();
  transport_.Poll(&transport_events_, max_transport_events_);
  const baton::Tick now = clock_.Now();
  for (const transport::KvEvent& event : transport_events_) {
    if (event.kind == transport::KvEventKind::kReceived) {
      landings_.Receive(now, event.header, event.payload, &events_);
    }
  }
  return static_cast<int32_t>(transport_events_.size()) >= max_transport_events_;
}

void DecodeLoop::Execute(scheduler::DecodeAction& action) {
  std::visit(
      [this](auto& a) {
        using Action = std::decay_t<decltype(a)>;
        if constexpr (std::is_same_v<Action, scheduler::OpenLanding>) {
          landings_.Open(a);
        } else if constexpr (std::is_same_v<Action, scheduler::CloseLanding>) {
          landings_.Close(a.epoch);
        } else if constexpr (std::is_same_v<Action, scheduler::RunDecodePass>) {
          scheduler::PassFinished finished;
          finished.status = runner_.Run(a.plan, nullptr, &finished.output);
          finished.finished_at = clock_.Now();
          events_.emplace_back(std::move(finished));
        } else {
          outbox_.Send(std::move(a));
        }
      },
      action);
}

// What fails here fails for the ranks that wait too, and for this one's next pass.
void DecodeLoop::RunEmptyPass() {
  scheduler::BatchPlan plan;
  plan.form = scheduler::Form::kDecode;
  scheduler::StepOutput output;
  runner_.Run(plan, nullptr, &output).IgnoreError();
}

void DecodeLoop::CheckInvariants() const {
  planner_.CheckInvariants();
  BATON_CHECK_EQ(landings_.open_landings(), static_cast<size_t>(planner_.open_landings()));
}

}  // namespace baton::decode_worker
