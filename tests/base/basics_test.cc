// The leaf types: queue, clock values, ids, generators, checks.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <unordered_set>
#include <vector>

#include "base/bounded_queue.h"
#include "base/build_info.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/ids.h"
#include "base/random.h"
#include "base/status_macros.h"
#include "base/thread.h"

namespace baton {
namespace {

using ::testing::ElementsAre;

TEST(BoundedQueue, FullLeavesTheItemWithTheCaller) {
  BoundedQueue<std::unique_ptr<int>> queue(1);
  ASSERT_TRUE(queue.TryPush(std::make_unique<int>(1)));
  auto second = std::make_unique<int>(2);
  EXPECT_FALSE(queue.TryPush(std::move(second)));
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(*second, 2);
  std::vector<std::unique_ptr<int>> out;
  EXPECT_EQ(queue.DrainInto(out), 1u);
  EXPECT_TRUE(queue.TryPush(std::move(second)));
}

TEST(BoundedQueue, KeepsOrderAndRefusesAfterClose) {
  BoundedQueue<int> queue(8);
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(queue.TryPush(int{i}));
  queue.Close();
  EXPECT_FALSE(queue.TryPush(9));
  std::vector<int> out;
  queue.DrainInto(out);
  EXPECT_THAT(out, ElementsAre(0, 1, 2, 3, 4));
}

TEST(BoundedQueue, EveryItemOfManyProducersArrivesOnce) {
  constexpr int kProducers = 3, kItems = 2000;
  BoundedQueue<int> queue(16);
  std::vector<int> out;
  {
    std::vector<Thread> producers;
    for (int p = 0; p < kProducers; ++p) {
      producers.emplace_back("producer", [&queue, p] {
        for (int i = 0; i < kItems;) i += queue.TryPush(p * kItems + i) ? 1 : 0;
      });
    }
    while (out.size() < static_cast<size_t>(kProducers * kItems)) {
      queue.WaitFor(Duration::Millis(100));
      queue.DrainInto(out);
    }
  }
  std::vector<int> last(kProducers, -1);
  for (const int item : out) {
    EXPECT_LT(last[static_cast<size_t>(item / kItems)], item);  // each producer's own order
    last[static_cast<size_t>(item / kItems)] = item;
  }
}

TEST(BoundedQueue, WakeEndsAWait) {
  BoundedQueue<int> queue(1);
  Thread waiter("waiter", [&queue] { queue.WaitFor(Duration::Seconds(600)); });
  queue.Wake();
  waiter.Join();  // hangs, and fails by the test's time limit, when the wake was lost
}

TEST(Clock, InfiniteStaysInfinite) {
  EXPECT_TRUE((Tick::Infinite() + Duration::Seconds(5)).infinite());
  EXPECT_LT(Tick::FromNanos(INT64_MAX - 1), Tick::Infinite());
  EXPECT_EQ(Duration::Millis(3).micros(), 3000);
  ManualClock clock;
  clock.Advance(Duration::Millis(2));
  EXPECT_EQ(clock.Now(), Tick::FromNanos(2'000'000));
  MonotonicClock monotonic;
  const Tick first = monotonic.Now();
  EXPECT_GE(monotonic.Now(), first);
}

TEST(StrongId, HashesAndCompares) {
  std::unordered_set<PageId> pages = {PageId(1), PageId(2), PageId(1)};
  EXPECT_EQ(pages.size(), 2u);
  EXPECT_LT((RequestKey{RequestId(1), 9}), (RequestKey{RequestId(2), 0}));
  static_assert(!std::is_convertible_v<PageId, WorkerId>);
  static_assert(!std::is_convertible_v<uint32_t, PageId>);
}

// The known answers that come with Salmon et al.'s Random123.
TEST(Random, PhiloxGivesTheKnownAnswers) {
  EXPECT_THAT(Philox4x32({0, 0, 0, 0}, {0, 0}),
              ElementsAre(0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u));
  EXPECT_THAT(Philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
              ElementsAre(0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu));
  EXPECT_THAT(
      Philox4x32({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}, {0xa4093822u, 0x299f31d0u}),
      ElementsAre(0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u));
}

TEST(Random, RngGivesTheKnownAnswersAndStaysInBounds) {
  Rng rng(1234567);
  EXPECT_EQ(rng.Next(), 6457827717110365317u);
  EXPECT_EQ(rng.Next(), 3203168211198807973u);
  EXPECT_EQ(rng.Next(), 9817491932198370423u);
  for (int i = 0; i < 1000; ++i) {
    EXPECT_LT(rng.Below(7), 7u);
    const double u = rng.Uniform();
    EXPECT_TRUE(u >= 0 && u < 1);
  }
}

TEST(CheckDeathTest, NamesPlaceExpressionAndValues) {
  EXPECT_DEATH(BATON_CHECK_EQ(1 + 1, 3),
               "basics_test.cc:[0-9]+: check failed: 1 \\+ 1 == 3: 2 vs. 3");
  EXPECT_DEATH(BATON_CHECK_MSG(false, "because"), "check failed: false: because");
}

absl::StatusOr<int> Half(int value) {
  if (value % 2 != 0) return absl::InvalidArgumentError("odd");
  return value / 2;
}

absl::StatusOr<int> Quarter(int value) {
  BATON_ASSIGN_OR_RETURN(const int half, Half(value));
  BATON_RETURN_IF_ERROR(Half(half).status());
  return Half(half);
}

TEST(StatusMacros, PropagateTheFirstError) {
  EXPECT_EQ(*Quarter(12), 3);
  EXPECT_EQ(Quarter(6).status().message(), "odd");
  EXPECT_EQ(Quarter(7).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(BuildInfo, IsFilledIn) {
  EXPECT_FALSE(Version().empty());
  EXPECT_FALSE(Revision().empty());
}

}  // namespace
}  // namespace baton
