#include "base/loop_thread.h"

#include <gtest/gtest.h>

#include <atomic>
#include <vector>

namespace baton {
namespace {

struct TickOutcome {
  bool busy = false;
  Tick wake_at = Tick::Infinite();
};

// Sums up what comes; is drained by a negative number.
class SumLoop {
 public:
  SumLoop(BoundedQueue<int>& inbox, std::atomic<int>& ticks, std::atomic<bool>& alive)
      : inbox_(inbox), ticks_(ticks), alive_(alive) {
    alive_ = true;
  }
  ~SumLoop() { alive_ = false; }

  void set_thread(LoopThread<SumLoop, int, int>* thread) { thread_ = thread; }

  TickOutcome Tick() {
    events_.clear();
    inbox_.DrainInto(events_);
    for (const int event : events_) {
      if (event < 0) drained_ = true;
      sum_ += event;
    }
    thread_->OnStep(sum_);
    ++ticks_;
    return {.busy = !events_.empty()};
  }
  bool drained() const { return drained_; }

 private:
  BoundedQueue<int>& inbox_;
  std::atomic<int>& ticks_;
  std::atomic<bool>& alive_;
  LoopThread<SumLoop, int, int>* thread_ = nullptr;
  std::vector<int> events_;
  int sum_ = 0;
  bool drained_ = false;
};

class LoopThreadTest : public ::testing::Test {
 protected:
  void Start(LoopThread<SumLoop, int, int>& thread) {
    auto loop = std::make_unique<SumLoop>(inbox_, ticks_, alive_);
    loop->set_thread(&thread);
    thread.Start("sum", std::move(loop));
  }
  template <typename Done>
  static void Await(const Done& done) {  // ctest's limit ends a wait for what never comes
    while (!done()) std::this_thread::yield();
  }
  MonotonicClock clock_;
  BoundedQueue<int> inbox_{16};
  std::atomic<int> ticks_{0};
  std::atomic<bool> alive_{false};
};

TEST_F(LoopThreadTest, TicksOnEventsAndShowsTheLastReport) {
  LoopThread<SumLoop, int, int> thread(inbox_, clock_);
  Start(thread);
  for (const int event : {1, 2, 3}) ASSERT_TRUE(inbox_.TryPush(int{event}));
  Await([&] { return thread.last_report() == 6; });
  EXPECT_FALSE(thread.drained());
  ASSERT_TRUE(inbox_.TryPush(-6));
  Await([&] { return thread.drained(); });
  EXPECT_EQ(thread.last_report(), 0);
}

TEST_F(LoopThreadTest, AnIdleLoopTicksAsOftenAsItIsTold) {
  LoopThread<SumLoop, int, int> thread(inbox_, clock_, Duration::Millis(1));
  Start(thread);
  Await([&] { return ticks_ > 20; });
}

TEST_F(LoopThreadTest, StopDestroysTheLoopAndKeepsItsReport) {
  LoopThread<SumLoop, int, int> thread(inbox_, clock_);
  Start(thread);
  ASSERT_TRUE(inbox_.TryPush(5));
  Await([&] { return thread.last_report() == 5; });
  EXPECT_TRUE(alive_);
  thread.Stop();
  EXPECT_FALSE(alive_);
  thread.Stop();
  EXPECT_EQ(thread.last_report(), 5);
}

}  // namespace
}  // namespace baton
