#ifndef BATON_PREFILL_WORKER_GROUP_FOLLOWER_H_
#define BATON_PREFILL_WORKER_GROUP_FOLLOWER_H_

// A rank of a prefill group other than the leader: does what the leader says (group_messages.h) and
// ships its share of the pages. No planner, no services. One thread calls Tick and owns runner and
// transport endpoint.

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "model/runner.h"
#include "prefill_worker/group_link.h"
#include "prefill_worker/group_messages.h"
#include "prefill_worker/handoff_sender.h"
#include "scheduler/step.h"
#include "transport/kv_transport.h"

namespace baton::prefill_worker {

class GroupFollower {
 public:
  // All references outlive the follower, which owns the transport; the link's rank is not the
  // leader's. Fails as HandoffSender::Create.
  static absl::StatusOr<std::unique_ptr<GroupFollower>> Create(
      const HandoffSenderOptions& options, Clock& clock, GroupLink& link, model::Runner& runner,
      std::unique_ptr<transport::KvTransport> transport);

  // One round: waits only for the other ranks, and only when one of them wants something.
  scheduler::TickResult Tick();

  // The leader said that the group is over.
  bool stopped() const { return stopped_; }
  // Not OK once the group is broken; Tick does nothing more then.
  const absl::Status& status() const { return status_; }
  bool has_posts_in_flight() const { return sender_->has_posts_in_flight(); }

 private:
  GroupFollower(Clock& clock, GroupLink& link, model::Runner& runner,
                std::unique_ptr<HandoffSender> sender)
      : clock_(clock), link_(link), runner_(runner), sender_(std::move(sender)) {}

  absl::Status Exchange();
  absl::Status Obey(FollowerCommand command);

  Clock& clock_;
  GroupLink& link_;
  model::Runner& runner_;
  std::unique_ptr<HandoffSender> sender_;
  std::vector<scheduler::HandoffFinished> results_;  // not yet reported
  bool stopped_ = false;
  absl::Status status_;
};

}  // namespace baton::prefill_worker

#endif  // BATON_PREFILL_WORKER_GROUP_FOLLOWER_H_
