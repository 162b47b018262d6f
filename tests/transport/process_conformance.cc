#include "tests/transport/process_conformance.h"

namespace baton::transport {
namespace {

using enum KvEventKind;

TEST_P(KvTransportProcesses, DeliversAllSizesIntact) {
  auto child = Start("echo");
  const TransferId transfer = peer_.transport().Prepare(child_address_).value();
  uint64_t id = 0;
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{100}, size_t{4096}, size_t{8193},
                             size_t{73728}, size_t{1} << 20, size_t{3'000'000}, kProcessMaxBytes}) {
    ASSERT_TRUE(Post(transfer, ++id, bytes).ok());
    ASSERT_TRUE(Poll([&] { return peer_.Count(kNotified) == id; })) << bytes;
    uint64_t answer[2];
    std::memcpy(answer, peer_.Seen(kNotified).back().payload.data(), sizeof(answer));
    EXPECT_EQ(answer[0], id);
    EXPECT_EQ(answer[1], 1u) << bytes;
  }
  EXPECT_TRUE(Poll([&] { return peer_.Count(kSent) == id; }));
  EXPECT_EQ(child->Finish(), 0);
  // Its end is noticed without a post.
  EXPECT_TRUE(Poll([&] { return peer_.Count(kPeerLost) == 1; }));
}

TEST_P(KvTransportProcesses, SurvivesAReceiverKilledInMidTransfer) {
  for (uint64_t round = 0; round < 4; ++round) {
    auto child = Start(round % 2 == 0 ? "echo" : "sleep");
    const TransferId transfer = peer_.transport().Prepare(child_address_).value();
    uint64_t id = 0;
    // Many megabytes under way, at a point that differs from round to round.
    for (uint64_t step = 0; step < 20 + 5 * round; ++step) {
      while (Post(transfer, id, size_t{1} << 20).ok()) ++id;
      peer_.Poll();
    }
    child->Kill();
    ASSERT_TRUE(Poll([&] { return peer_.Count(kPeerLost, transfer) == 1; }));
    EXPECT_EQ(Post(transfer, id, 1).code(), absl::StatusCode::kFailedPrecondition);
    peer_.transport().Release(transfer);
    ASSERT_TRUE(Poll([&] { return peer_.Count(kReleased, transfer) == 1; }));
    peer_.seen.clear();
  }
  ExpectWorks();
}

TEST_P(KvTransportProcesses, SurvivesASenderKilledInMidTransfer) {
  for (size_t round = 0; round < 4; ++round) {
    auto child = Start("flood");
    ASSERT_TRUE(Poll([&] { return peer_.Count(kReceived) >= 5 + 10 * round; }));
    child->Kill();
    // What was complete comes still, what was not is given up: no staging stays behind.
    EXPECT_TRUE(Poll([&] { return GetParam().staging_in_use(peer_.transport()) == 0; }));
    peer_.seen.clear();
  }
  ExpectWorks();
}

TEST_P(KvTransportProcesses, GivesUpOnAPeerThatStands) {
  auto child = Start("echo");
  const TransferId transfer = peer_.transport().Prepare(child_address_).value();
  ASSERT_TRUE(Post(transfer, 1, 1000).ok());
  ASSERT_TRUE(Poll([&] { return peer_.Count(kNotified) == 1; }));
  child->Signal(SIGSTOP);
  ASSERT_TRUE(Post(transfer, 2, kProcessMaxBytes).ok());
  ASSERT_TRUE(Poll([&] { return peer_.Count(kPeerLost, transfer) == 1; }));
  EXPECT_EQ(peer_.Seen(kPeerLost)[0].status.code(), absl::StatusCode::kUnavailable);
  peer_.transport().Release(transfer);
  EXPECT_TRUE(Poll([&] { return peer_.Count(kReleased, transfer) == 1; }));
  child->Signal(SIGCONT);
  EXPECT_EQ(child->Finish(), 0);
  ExpectWorks();
}

TEST_P(KvTransportProcesses, ReportsAnAddressWhoseProcessIsGone) {
  auto child = Start("sleep");
  child->Kill();
  const TransferId transfer = peer_.transport().Prepare(child_address_).value();
  EXPECT_TRUE(Poll([&] { return peer_.Count(kPeerLost, transfer) == 1; }));
  ExpectWorks();
}

// One that stands holds up nobody else, whichever way its data goes.
TEST_P(KvTransportProcesses, AStandingPeerDisturbsNoOther) {
  auto standing = Start("echo");
  const TransferId stopped = peer_.transport().Prepare(child_address_).value();
  auto other = Start("echo");
  const TransferId good = peer_.transport().Prepare(child_address_).value();
  auto flood = Start("flood");
  ASSERT_TRUE(Post(stopped, 1, 1000).ok());
  ASSERT_TRUE(Post(good, 2, 1000).ok());
  ASSERT_TRUE(Poll([&] { return peer_.Count(kNotified) == 2 && peer_.Count(kReceived) > 3; }));
  flood->Signal(SIGSTOP);
  standing->Signal(SIGSTOP);
  for (uint64_t id = 3; id < 8; ++id) ASSERT_TRUE(Post(stopped, id, size_t{1} << 20).ok());
  for (uint64_t id = 8; peer_.Count(kPeerLost, stopped) == 0; ++id) {
    const size_t before = peer_.Count(kNotified);
    ASSERT_TRUE(Post(good, id, 100'000).ok());
    ASSERT_TRUE(Poll([&] { return peer_.Count(kNotified) > before; })) << id;
  }
  EXPECT_EQ(peer_.Count(kPeerLost, good), 0u);
  peer_.transport().Release(stopped);
  EXPECT_TRUE(Poll([&] { return peer_.Count(kReleased, stopped) == 1; }));
  standing->Signal(SIGCONT);
  EXPECT_EQ(standing->Finish(), 0);
  EXPECT_EQ(other->Finish(), 0);
}

// Back-pressure: what it cannot take waits, and arrives when it polls again.
TEST_P(KvTransportProcesses, ASlowReceiverLosesNothing) {
  auto child = Start("slow");
  const TransferId transfer = peer_.transport().Prepare(child_address_).value();
  constexpr uint64_t kMessages = 60;
  uint64_t posted = 0;
  ASSERT_TRUE(Poll([&] {
    while (posted < kMessages && Post(transfer, posted, size_t{1} << 20).ok()) ++posted;
    return peer_.Count(kNotified) == kMessages;
  }));
  EXPECT_TRUE(Poll([&] { return peer_.Count(kSent) == kMessages; }));
  for (const SeenEvent& event : peer_.Seen(kNotified)) {
    uint64_t answer[2];
    std::memcpy(answer, event.payload.data(), sizeof(answer));
    EXPECT_EQ(answer[1], 1u) << answer[0];
  }
  EXPECT_EQ(peer_.Count(kPeerLost), 0u);
  EXPECT_EQ(child->Finish(), 0);
}

}  // namespace
}  // namespace baton::transport
