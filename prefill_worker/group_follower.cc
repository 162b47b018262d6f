#include "prefill_worker/group_follower.h"

#include <type_traits>
#include <utility>
#include <variant>

#include "base/check.h"
#include "base/status_macros.h"

namespace baton::prefill_worker {
absl::StatusOr<std::unique_ptr<GroupFollower>> GroupFollower::Create(
    const HandoffSenderOptions& options, Clock& clock, GroupLink& link, model::Runner& runner,
    std::unique_ptr<transport::KvTransport> transport) {
  BATON_CHECK_NE(link.rank(), GroupLink::kLeader);
  BATON_ASSIGN_OR_RETURN(std::unique_ptr<HandoffSender> sender,
                         HandoffSender::Create(options, clock, runner, std::move(transport)));
  return std::unique_ptr<GroupFollower>(new GroupFollower(clock, link, runner, std::move(sender)));
}

scheduler::TickResult GroupFollower::Tick() {
  bool busy = sender_->Progress();
  for (scheduler::HandoffFinished& finished : sender_->TakeFinished()) {
    results_.push_back(std::move(finished));
  }
  if (status_.ok() && !stopped_) status_ = link_.health();  // the leader may leave once it is over
  if (status_.ok() && !stopped_ && (!results_.empty() || link_.PeersWait())) {
    status_ = Exchange();
    busy = true;
  }
  return {busy && status_.ok(), sender_->NextWake(clock_.Now())};
}

absl::Status GroupFollower::Exchange() {
  BATON_RETURN_IF_ERROR(link_.Exchange(EncodeResults(std::exchange(results_, {}))));
  absl::StatusOr<FollowerCommand> command = DecodeCommand(link_.command());
  if (!command.ok()) {
    link_.Abort(command.status());
    return command.status();
  }
  return Obey(*std::move(command));
}

absl::Status GroupFollower::Obey(FollowerCommand command) {
  for (const auto& handoff : command.handoffs) {
    if (const auto* open = std::get_if<scheduler::OpenHandoff>(&handoff)) {
      sender_->Open(*open);
      continue;
    }
    const RequestKey key = std::get<scheduler::AbortHandoff>(handoff).key;
    std::erase_if(results_, [key](const auto& finished) { return finished.key == key; });
    sender_->Abort(key);
  }
  stopped_ = command.stop;
  if (!command.pass.has_value()) return absl::OkStatus();
  sender_->BeginPass(std::move(command.pass->pass.handoffs));
  scheduler::StepOutput output;
  // A pass that fails on all ranks alike (the leader's calls fail then) leaves the group whole.
  runner_.Run(command.pass->pass.plan, sender_.get(), &output).IgnoreError();
  sender_->EndPass();
  return link_.health();
}

}  // namespace baton::prefill_worker
