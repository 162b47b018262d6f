// UCX between processes: all sizes, and peers that are killed, stopped and started again.

#include <gtest/gtest.h>

#include <map>

#include "tests/transport/child_process.h"
#include "tests/transport/hex.h"
#include "tests/transport/test_peer.h"
#include "transport/ucx/ucx_transport.h"

namespace baton::transport {
namespace {

using enum KvEventKind;

constexpr size_t kMaxBytes = size_t{8} << 20;

class UcxProcessTest : public testing::TestWithParam<const char*> {
 protected:
  UcxProcessTest() : peer_(NewEndpoint(), &bell_), memory_(&peer_.transport(), kMaxBytes, 1) {}

  static std::unique_ptr<UcxTransport> NewEndpoint() {
    UcxOptions options;
    options.tls = GetParam();
    options.max_message_bytes = kMaxBytes;
    options.staging_bytes = uint64_t{16} << 20;
    options.max_posts_in_flight = 32;
    options.keepalive_interval = Duration::Millis(200);
    options.stall_timeout = Duration::Millis(1500);
    return CreateUcxTransport(options, std::make_shared<MonotonicClock>()).value();
  }

  std::unique_ptr<ChildProcess> Start(const std::string& mode) {
    auto child = std::make_unique<ChildProcess>(
        BATON_BINARY_DIR "/tests/transport/transport_child",
        std::vector<std::string>{mode, GetParam(), ToHex(peer_.transport().address())});
    child_address_ = FromHex(child->ReadLine());
    return child;
  }

  UcxTransport& ucx() { return static_cast<UcxTransport&>(peer_.transport()); }

  absl::Status Post(TransferId transfer, uint64_t id, size_t bytes) {
    const auto payload = memory_.Part(0, bytes);
    KvMessageHeader header = TestHeader(id, payload);
    auto [known, is_new] = checksums_.try_emplace(bytes);
    if (is_new) known->second = Checksum(payload);
    header.checksum = known->second;
    return peer_.transport().Post(transfer, id, header, payload);
  }

  bool Poll(const std::function<bool()>& done) { return PollUntil({&peer_}, done); }

  // Posts one message to a fresh echo child and waits for its answer.
  void ExpectWorks() {
    auto child = Start("echo");
    const TransferId transfer = peer_.transport().Prepare(child_address_).value();
    const size_t before = peer_.Count(kNotified);
    ASSERT_TRUE(Post(transfer, 1, 100'000).ok());
    EXPECT_TRUE(Poll([&] { return peer_.Count(kNotified) == before + 1; }));
    peer_.transport().Release(transfer);
    EXPECT_TRUE(Poll([&] { return peer_.Count(kReleased, transfer) == 1; }));
    EXPECT_EQ(child->Finish(), 0);
  }

  Bell bell_;
  TestPeer peer_;
  TestMemory memory_;
  std::map<size_t, uint64_t> checksums_;  // of the first bytes of memory_
  std::string child_address_;
};

TEST_P(UcxProcessTest, DeliversAllSizesIntact) {
  auto child = Start("echo");
  const TransferId transfer = peer_.transport().Prepare(child_address_).value();
  uint64_t id = 0;
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{100}, size_t{4096}, size_t{8193},
                             size_t{73728}, size_t{1} << 20, size_t{3'000'000}, kMaxBytes}) {
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

TEST_P(UcxProcessTest, SurvivesAReceiverKilledInMidTransfer) {
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

TEST_P(UcxProcessTest, SurvivesASenderKilledInMidTransfer) {
  for (size_t round = 0; round < 4; ++round) {
    auto child = Start("flood");
    ASSERT_TRUE(Poll([&] { return peer_.Count(kReceived) >= 5 + 10 * round; }));
    child->Kill();
    // What was complete comes still, what was not is given up: no staging stays behind.
    EXPECT_TRUE(Poll([&] { return ucx().staging_in_use_bytes() == 0; }));
    peer_.seen.clear();
  }
  ExpectWorks();
}

TEST_P(UcxProcessTest, GivesUpOnAPeerThatStands) {
  auto child = Start("echo");
  const TransferId transfer = peer_.transport().Prepare(child_address_).value();
  ASSERT_TRUE(Post(transfer, 1, 1000).ok());
  ASSERT_TRUE(Poll([&] { return peer_.Count(kNotified) == 1; }));
  child->Signal(SIGSTOP);
  ASSERT_TRUE(Post(transfer, 2, kMaxBytes).ok());
  ASSERT_TRUE(Poll([&] { return peer_.Count(kPeerLost, transfer) == 1; }));
  EXPECT_EQ(peer_.Seen(kPeerLost)[0].status.code(), absl::StatusCode::kUnavailable);
  peer_.transport().Release(transfer);
  EXPECT_TRUE(Poll([&] { return peer_.Count(kReleased, transfer) == 1; }));
  child->Signal(SIGCONT);
  EXPECT_EQ(child->Finish(), 0);
  ExpectWorks();
}

TEST_P(UcxProcessTest, ReportsAnAddressWhoseProcessIsGone) {
  auto child = Start("sleep");
  child->Kill();
  const TransferId transfer = peer_.transport().Prepare(child_address_).value();
  EXPECT_TRUE(Poll([&] { return peer_.Count(kPeerLost, transfer) == 1; }));
  ExpectWorks();
}

INSTANTIATE_TEST_SUITE_P(Tls, UcxProcessTest, testing::Values("sysv,tcp", "tcp"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), ',', '_');
                           return name;
                         });

}  // namespace
}  // namespace baton::transport
