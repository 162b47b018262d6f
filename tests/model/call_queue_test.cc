#include "model/call_queue.h"

#include <gtest/gtest.h>

#include <vector>

namespace baton::model {
namespace {

TEST(CallQueue, RunsCallsInOrderAndKeepsTheirResults) {
  std::vector<int> order;
  CallQueue queue("calls");
  const auto call = [&order](int i) {
    return [&order, i] {
      order.push_back(i);
      return i == 1 ? absl::UnavailableError("one") : absl::OkStatus();
    };
  };
  const CallQueue::Ticket zero = queue.Post(call(0));
  const CallQueue::Ticket one = queue.Post(call(1));
  const CallQueue::Ticket two = queue.Post(call(2));
  EXPECT_TRUE(queue.Wait(two).ok());
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(queue.Wait(one), absl::UnavailableError("one"));
  EXPECT_TRUE(queue.Wait(zero).ok());
}

TEST(CallQueue, AllIsDoneAfterWaitForAllAndOnDestruction) {
  int ran = 0;
  const auto count = [&ran] {
    ++ran;
    return absl::OkStatus();
  };
  {
    CallQueue queue("calls");
    for (int i = 0; i < 10; ++i) queue.Post(count);
    queue.WaitForAll();
    EXPECT_EQ(ran, 10);
    queue.WaitForAll();
    for (int i = 0; i < 10; ++i) queue.Post(count);
  }
  EXPECT_EQ(ran, 20);
}

}  // namespace
}  // namespace baton::model
