#include "server/frontend_loop.h"

#include <algorithm>
#include <type_traits>
#include <utility>
#include <variant>

namespace baton::server {
namespace {

constexpr Duration kCheckInterval = Duration::Seconds(1);

}  // namespace

bool FrontendInbox::TryArrive(scheduler::Arrived&& arrived) {
  // Not exact between threads that arrive together; the other half has room for the difference.
  if (queue_.size() >= queue_.capacity() / 2) return false;
  return queue_.TryPush(std::move(arrived));
}

bool FrontendInbox::TryPush(scheduler::RouterEvent&& event) {
  return queue_.TryPush(std::move(event));
}

FrontendLoop::FrontendLoop(const scheduler::RouterOptions& options, Clock& clock,
                           FrontendInbox& inbox, FrontendOutbox& outbox, FrontendObserver& observer)
    : clock_(clock), inbox_(inbox), outbox_(outbox), observer_(observer), router_(options) {}

scheduler::TickResult FrontendLoop::Tick() {
  const baton::Tick now = clock_.Now();
  events_.clear();
  inbox_.queue().DrainInto(events_);
  sink_.Clear();
  router_.Step(now, events_, sink_);
  for (scheduler::RouterAction& action : sink_.actions) {
    std::visit(
        [this](auto& a) {
          using Action = std::decay_t<decltype(a)>;
          if constexpr (std::is_same_v<Action, scheduler::RefuseWorker>) {
            outbox_.Refuse(std::move(a));
          } else if constexpr (std::is_same_v<Action, scheduler::EmitTokens> ||
                               std::is_same_v<Action, scheduler::RequestResult>) {
            outbox_.Deliver(std::move(a));
          } else {
            outbox_.Send(std::move(a));
          }
        },
        action);
  }
  observer_.OnStep(sink_.report);
  // Idle: nobody waits, so this is when to look for contradictions. Not after every batch of
  // events: with thousands of requests a look at all of them takes longer than to decide about the
  // news.
  if (events_.empty() && sink_.actions.empty() && now >= next_check_) {
    router_.CheckInvariants();
    next_check_ = now + kCheckInterval;
  }
  return {!events_.empty(), router_.NextWake()};
}

}  // namespace baton::server
