// ExpertGroup, continued: what ranks tell each other, and what the leader's planner decides.

#include <algorithm>
#include <iterator>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "decode_worker/expert_group.h"
#include "scheduler/expert_routing.h"

namespace baton::decode_worker {

using scheduler::RebalanceEnd;

// --- what comes from elsewhere --------------------------------------------------------------

void ExpertGroup::TakeRequests() {
  if (requested_.exchange(false)) Send(leader_, AskRebalance{});
}

void ExpertGroup::TakeCopies() {
  for (const ExpertCopier::Finished& copy : copier_.TakeFinished()) {
    if (!copy.status.ok()) {
      slots_->Abort(copy.version);
      EndPrepare(copy.version, copy.status);
    } else if (slots_->CopyDone(copy.version, copy.layer, copy.slot) &&
               slots_->prepared(copy.version)) {
      EndPrepare(copy.version, absl::OkStatus());
    }
  }
}

void ExpertGroup::TakePlacements() {
  std::vector<scheduler::PlacementComputed> computed = placements_.TakeComputed();
  if (leads()) std::move(computed.begin(), computed.end(), std::back_inserter(events_));
}

// The leader takes ranks back in.
void ExpertGroup::LookForReturned() {
  if (!leads() || absent_.empty() || form_anew_.has_value() || clock_.Now() < next_knock_) return;
  next_knock_ = clock_.Now() + options_.knock_interval;
  const std::vector<int> knocking = rendezvous_.Knocking();
  FormAnew form;
  std::set_intersection(knocking.begin(), knocking.end(), absent_.begin(), absent_.end(),
                        std::back_inserter(form.returned));
  if (form.returned.empty()) return;
  for (int32_t r = 0; r < ranks(); ++r) {
    if (seat_.is_present(r)) Send(r, form);
  }
}

// --- messages -------------------------------------------------------------------------------

void ExpertGroup::Send(int32_t to, const ExpertMessage& message) {
  if (to == rank()) {
    std::visit([this](const auto& m) { Receive(m); }, message);
  } else if (seat_.is_present(to)) {
    PutMessage(message, mail_[static_cast<size_t>(to)]);
  }
}

void ExpertGroup::Receive(const scheduler::PrepareExperts& message) {
  const uint64_t version = message.target.version;
  absl::Status accepted = slots_->Prepare(message);
  if (!accepted.ok()) return EndPrepare(version, std::move(accepted));
  copier_.Begin(version, message.copies);
  if (slots_->prepared(version)) EndPrepare(version, absl::OkStatus());
}

void ExpertGroup::EndPrepare(uint64_t version, absl::Status status) {
  Send(leader_, scheduler::PrepareEnded{rank(), version, std::move(status)});
}

void ExpertGroup::Receive(const scheduler::PrepareEnded& message) {
  if (leads()) events_.emplace_back(message);
}

void ExpertGroup::Receive(const scheduler::AbortPrepare& message) {
  if (slots_->target().version == message.version) copier_.Drop();
  slots_->Abort(message.version);
}

void ExpertGroup::Receive(const AskRebalance&) {
  if (leads()) events_.emplace_back(scheduler::RebalanceRequested{});
}

void ExpertGroup::Receive(const FormAnew& message) { form_anew_ = message; }

// --- the leader's decisions -----------------------------------------------------------------

void ExpertGroup::StepPlanner() {
  sink_.Clear();
  planner_->Step(clock_.Now(), events_, sink_);
  events_.clear();
  report_.copies += sink_.report.copies;
  report_.restored += sink_.report.restored;
  if (sink_.report.switches > 0) reported_ = false;
  // Carrying out only adds to events_ and to mail.
  for (scheduler::RebalanceAction& action : sink_.actions) {
    std::visit([this](auto& a) { Carry(a); }, action);
  }
}

void ExpertGroup::Carry(scheduler::ComputePlacement& action) {
  placements_.Begin(std::move(action));
}
void ExpertGroup::Carry(scheduler::SendPrepare& action) { Send(action.rank, action.message); }
void ExpertGroup::Carry(scheduler::SendAbort& action) { Send(action.rank, action.message); }
void ExpertGroup::Carry(scheduler::NameSwitch& action) { notice_ = action.notice; }

void ExpertGroup::Carry(scheduler::RebalanceEnded& action) {
  ++report_.ended[static_cast<size_t>(action.end)];
  const std::string why = action.status.ToString();
  const LogFields fields = {{"gain", action.gain}, {"copies", action.copies}};
  switch (action.end) {
    case RebalanceEnd::kInstalled:
      last_rebalance_ = absl::StrCat("installed, with ", action.copies, " copies");
      log_.Info("experts were placed anew", fields);
      break;
    case RebalanceEnd::kNotWorth:
      last_rebalance_ = "not worth it: the placement in use is as good, or nearly";
      log_.Debug("the experts' placement stays", fields);
      break;
    case RebalanceEnd::kRolledBack:
      last_rebalance_ = absl::StrCat("rolled back: ", why);
      log_.Warning("experts were not placed anew", {{"cause", why}});
      break;
    case RebalanceEnd::kRefused:
      last_rebalance_ = absl::StrCat("refused: ", why);
      log_.Info("a request to place experts anew was refused", {{"cause", why}});
      break;
  }
  Publish();
}

void ExpertGroup::Carry(scheduler::RankRestored& action) {
  log_.Info("a rank has its experts again", {{"restored", action.rank}});
}

void ExpertGroup::Carry(scheduler::StopGroup& action) {
  Fail(absl::UnavailableError(
           absl::StrCat(action.uncovered, " experts have no replica on the ranks that are left")))
      .IgnoreError();
}

// --- for others to see ----------------------------------------------------------------------

void ExpertGroup::Publish() {
  reported_ = false;
  auto view = std::make_shared<ExpertsView>();
  view->rank = rank();
  view->leader = leader_;
  view->active = slots_->active();
  view->present = Present();
  view->loads = loads_;
  view->placed_at = placed_at_;
  view->last_rebalance = last_rebalance_;
  const scheduler::ExpertPlacement& placement = *view->active.placement;
  view->uncovered = scheduler::CountUncovered(placement, view->active.live);
  view->on_one_rank = scheduler::CountOnOneRank(placement, view->active.live);
  if (loads_ != nullptr) {
    view->balancedness = scheduler::Balancedness(placement, *loads_, view->active.live);
  }
  std::lock_guard<std::mutex> lock(view_mutex_);
  view_ = std::move(view);
}

}  // namespace baton::decode_worker
