// The decode loop of a rank in a group: it takes part in the others' passes when it has none of its
// own.

#include <functional>
#include <memory>
#include <vector>

#include "base/clock.h"
#include "decode_worker/loop.h"
#include "gtest/gtest.h"
#include "model/runner_decorator.h"
#include "tests/sim/stub_runner.h"
#include "transport/inproc/inproc_transport.h"

namespace baton::decode_worker {
namespace {

// Ranks that wait, as often as the test says, and the passes that they got.
class WaitingPeers final : public model::RunnerDecorator {
 public:
  explicit WaitingPeers(model::Runner& runner) : RunnerDecorator(runner) {}

  absl::Status Run(const scheduler::BatchPlan& plan, model::LayerObserver*,
                   scheduler::StepOutput*) override {
    passes.push_back(plan);
    --waiting;
    return status;
  }
  bool WantsPass() override { return waiting > 0; }
  void SetWakeup(const std::function<void()>& wakeup) override { wakeup_ = wakeup; }
  void Wake() { wakeup_(); }

  int waiting = 0;
  absl::Status status;
  std::vector<scheduler::BatchPlan> passes;

 private:
  std::function<void()> wakeup_;
};

struct Outbox final : DecodeOutbox {
  void Send(scheduler::SendUpdate) override {}
  void Send(scheduler::CallPrefill) override {}
  void Send(scheduler::CancelPrefill) override {}
};
struct Observer final : DecodeObserver {
  void OnStep(const scheduler::DecodeReport&, const LandingReport&) override {}
};

TEST(DecodeGroupLoopTest, AnIdleRankRunsEmptyPassesWhilePeersWait) {
  ManualClock clock;
  sim::StubRunner stub({}, nullptr);
  WaitingPeers peers(stub);
  transport::InprocFabric fabric;
  const auto endpoint = fabric.NewEndpoint("decode");
  DecodeInbox inbox(16);
  Outbox outbox;
  Observer observer;
  DecodeLoopOptions options;
  options.planner.first_epoch = 5;
  const auto loop = DecodeLoop::Create(options, clock, peers, *endpoint, inbox, outbox, observer);
  ASSERT_TRUE(loop.ok()) << loop.status();

  EXPECT_FALSE((*loop)->Tick().busy);
  EXPECT_TRUE(peers.passes.empty());

  peers.waiting = 2;
  peers.Wake();
  inbox.WaitFor(Duration::Seconds(60));  // returns at once: woken
  EXPECT_TRUE((*loop)->Tick().busy);
  EXPECT_TRUE((*loop)->Tick().busy);
  EXPECT_FALSE((*loop)->Tick().busy);
  ASSERT_EQ(peers.passes.size(), 2u);
  for (const scheduler::BatchPlan& plan : peers.passes) {
    EXPECT_EQ(plan.form, scheduler::Form::kDecode);
    EXPECT_EQ(plan.total_rows, 0);
    EXPECT_TRUE(plan.slices.empty());
  }

  // A group that breaks is not this rank's requests' fault: it has none.
  peers.waiting = 1;
  peers.status = absl::UnavailableError("rank 1 is gone");
  EXPECT_TRUE((*loop)->Tick().busy);
  EXPECT_FALSE((*loop)->Tick().busy);
  (*loop)->CheckInvariants();
}

}  // namespace
}  // namespace baton::decode_worker
