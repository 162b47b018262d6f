#include "prefill_worker/follower.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "base/bounded_queue.h"
#include "base/status_macros.h"
#include "base/thread.h"
#include "model/metered_runner.h"
#include "prefill_worker/group_follower.h"

namespace baton::prefill_worker {
namespace {

// The loop waits for nothing but wake-ups; this bounds how late it sees what came without one.
constexpr Duration kMaxWait = Duration::Millis(500);

class FollowerImpl final : public Follower {
 public:
  FollowerImpl(const FollowerOptions& options, Clock& clock,
               std::unique_ptr<transport::Collectives> collectives,
               std::unique_ptr<model::Runner> runner,
               std::unique_ptr<transport::KvTransport> transport, const PrefillMetrics& metrics,
               const Log& log)
      : clock_(clock),
        log_(log),
        collectives_(std::move(collectives)),
        runner_(std::move(runner)),
        metered_runner_(*runner_, clock, metrics.worker),
        transport_(std::move(transport)),
        link_(*collectives_, options.timeout),
        max_wait_(options.poll_interval > Duration() ? options.poll_interval : kMaxWait) {}

  ~FollowerImpl() override {
    stop_.store(true, std::memory_order_release);
    wakeups_.Wake();
    thread_.reset();
    if (!over()) collectives_->Abort(absl::UnavailableError("the rank was told to end"));
    collectives_->SetWakeup([] {});
  }

  absl::Status Start(const FollowerOptions& options) {
    transport_->SetWakeup([this] { wakeups_.Wake(); });
    BATON_ASSIGN_OR_RETURN(follower_,
                           GroupFollower::Create(options.handoff, clock_, link_, metered_runner_,
                                                 std::move(transport_)));
    collectives_->SetWakeup([this] { wakeups_.Wake(); });
    thread_.emplace("prefill-" + std::to_string(link_.rank()), [this] { Run(); });
    return absl::OkStatus();
  }

  bool over() const override { return over_.load(std::memory_order_acquire); }
  absl::Status health() const override {
    std::lock_guard<std::mutex> lock(mutex_);
    return health_;
  }

 private:
  void Run() {
    while (!stop_.load(std::memory_order_acquire)) {
      const scheduler::TickResult result = follower_->Tick();
      if (!follower_->status().ok()) {
        log_.Error("left the prefill group",
                   {{"rank", link_.rank()}, {"status", follower_->status().ToString()}});
        std::lock_guard<std::mutex> lock(mutex_);
        health_ = follower_->status();
        break;
      }
      if (follower_->stopped() && !follower_->has_posts_in_flight()) break;
      if (result.busy) continue;
      const Duration wait = result.wake_at.infinite() ? max_wait_ : result.wake_at - clock_.Now();
      if (wait > Duration()) wakeups_.WaitFor(std::min(wait, max_wait_));
    }
    if (follower_->stopped() || !follower_->status().ok()) {
      over_.store(true, std::memory_order_release);
    }
  }

  Clock& clock_;
  const Log log_;
  // In the order of what outlives what.
  BoundedQueue<int> wakeups_{1};
  const std::unique_ptr<transport::Collectives> collectives_;
  const std::unique_ptr<model::Runner> runner_;
  model::MeteredRunner metered_runner_;
  std::unique_ptr<transport::KvTransport> transport_;  // until the follower has it
  GroupLink link_;
  const Duration max_wait_;
  std::unique_ptr<GroupFollower> follower_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> over_{false};
  mutable std::mutex mutex_;
  absl::Status health_;  // guarded by mutex_
  std::optional<Thread> thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Follower>> Follower::Start(
    const FollowerOptions& options, Clock& clock,
    std::unique_ptr<transport::Collectives> collectives, std::unique_ptr<model::Runner> runner,
    std::unique_ptr<transport::KvTransport> transport, const PrefillMetrics& metrics,
    const Log& log) {
  FollowerOptions own = options;
  own.handoff.metrics = metrics.handoff;
  auto follower = std::make_unique<FollowerImpl>(
      own, clock, std::move(collectives), std::move(runner), std::move(transport), metrics, log);
  BATON_RETURN_IF_ERROR(follower->Start(own));
  return follower;
}

}  // namespace baton::prefill_worker
