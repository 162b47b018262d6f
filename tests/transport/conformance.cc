#include "tests/transport/conformance.h"

#include <map>
#include <set>

#include "base/thread.h"
#include "tests/transport/test_peer.h"

namespace baton::transport {
namespace {

using enum KvEventKind;

// Two endpoints and a transfer from `a` to `b`.
struct Pair {
  explicit Pair(TestFabric* fabric)
      : a(fabric->NewEndpoint(), &bell), b(fabric->NewEndpoint(), &bell) {
    transfer = a.transport().Prepare(b.transport().address()).value();
  }
  bool Poll(const std::function<bool()>& done) { return PollUntil({&a, &b}, done); }

  Bell bell;
  TestPeer a;
  TestPeer b;
  TransferId transfer;
};

TEST_P(KvTransportConformance, RefusesForeignAddresses) {
  Pair pair(fabric_.get());
  const std::string good = pair.b.transport().address();
  EXPECT_NE(good, pair.a.transport().address());
  for (const std::string& bad : {std::string(), std::string("x"), std::string("localhost:1234"),
                                 std::string(300, '\0'), good.substr(0, 7), "x" + good}) {
    EXPECT_EQ(pair.a.transport().Prepare(bad).status().code(), absl::StatusCode::kInvalidArgument)
        << bad.size() << " bytes";
  }
}

TEST_P(KvTransportConformance, RegisterRefusesNothing) {
  Pair pair(fabric_.get());
  EXPECT_EQ(pair.a.transport().Register({}).status().code(), absl::StatusCode::kInvalidArgument);
  TestMemory memory(&pair.a.transport(), 4096, 1);
  pair.a.transport().Unregister(memory.region());
  EXPECT_EQ(pair.a.transport()
                .Post(pair.transfer, 1, TestHeader(1, memory.bytes()), memory.bytes())
                .code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_P(KvTransportConformance, DeliversHeadersAndPayloadsOfAllSizes) {
  Pair pair(fabric_.get());
  TestMemory memory(&pair.a.transport(), kTestMaxMessageBytes + 64, 2);
  uint64_t id = 0;
  for (const size_t size :
       {size_t{0}, size_t{1}, size_t{63}, size_t{64}, size_t{1000}, size_t{4096}, size_t{8192},
        size_t{65535}, size_t{73728}, size_t{1} << 20, size_t{kTestMaxMessageBytes}}) {
    const auto payload = memory.Part(id, size);  // at odd addresses too
    const KvMessageHeader header = TestHeader(++id, payload);
    ASSERT_TRUE(pair.a.transport().Post(pair.transfer, id, header, payload).ok()) << size;
    ASSERT_TRUE(pair.Poll([&] {
      return pair.b.Count(kReceived) == id && pair.a.Count(kSent) == id;
    })) << size;
    const SeenEvent got = pair.b.Seen(kReceived).back();
    EXPECT_TRUE(SameHeader(got.header, header)) << size;
    EXPECT_TRUE(SameBytes(got.payload, payload)) << size;
    const SeenEvent sent = pair.a.Seen(kSent).back();
    EXPECT_EQ(sent.post_id, id);
    EXPECT_EQ(sent.transfer, pair.transfer);
    pair.b.seen.erase(pair.b.seen.begin(), pair.b.seen.end() - 1);
    pair.b.seen.back().payload.clear();
    while (pair.b.Count(kReceived) < id) pair.b.seen.push_back({.kind = kReceived});
  }
}

TEST_P(KvTransportConformance, RefusesBadPostsAndNotifies) {
  Pair pair(fabric_.get());
  TestMemory memory(&pair.a.transport(), kTestMaxMessageBytes + 1, 3);
  std::vector<std::byte> foreign(100);
  const auto code = [&](const KvMessageHeader& header, std::span<const std::byte> payload) {
    return pair.a.transport().Post(pair.transfer, 1, header, payload).code();
  };
  EXPECT_EQ(code(TestHeader(1, memory.bytes()), memory.bytes()),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(TestHeader(1, memory.Part(0, 5)), memory.Part(0, 6)),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(TestHeader(1, foreign), foreign), absl::StatusCode::kInvalidArgument);
  const auto past_the_end =
      std::span<const std::byte>(memory.Part(10, 1).data(), kTestMaxMessageBytes);
  EXPECT_EQ(code(TestHeader(1, past_the_end), past_the_end), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(pair.a.transport().Notify(pair.transfer, memory.Part(0, 4097)).code(),
            absl::StatusCode::kInvalidArgument);
  const auto payload = memory.Part(0, 8);
  EXPECT_EQ(pair.a.transport().Post(TransferId(99), 1, TestHeader(1, payload), payload).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(pair.a.transport().Notify(TransferId(99), payload).code(),
            absl::StatusCode::kFailedPrecondition);
  // None of them left anything behind.
  ASSERT_TRUE(pair.a.transport().Post(pair.transfer, 7, TestHeader(7, payload), payload).ok());
  pair.a.transport().Release(pair.transfer);
  ASSERT_TRUE(
      pair.Poll([&] { return pair.a.Count(kReleased) == 1 && pair.b.Count(kReceived) == 1; }));
  EXPECT_EQ(pair.a.Count(kSent), 1u);
  EXPECT_EQ(pair.b.seen.size(), 1u);
}

TEST_P(KvTransportConformance, BoundsWhatIsInFlightAndRecovers) {
  Pair pair(fabric_.get());
  constexpr size_t kBytes = size_t{1} << 20;
  TestMemory memory(&pair.a.transport(), kBytes, 4);
  ASSERT_EQ(pair.a.transport().capabilities().max_posts_in_flight, kTestMaxPosts);
  uint64_t accepted = 0;
  absl::Status status;
  while (status.ok() && accepted <= kTestMaxPosts) {
    status = pair.a.transport().Post(pair.transfer, accepted, TestHeader(accepted, memory.bytes()),
                                     memory.bytes());
    if (status.ok()) ++accepted;
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_EQ(accepted, kTestMaxPosts);
  // More than the receiver's staging holds: it gets the rest as it polls.
  ASSERT_GT(accepted * kBytes, kTestStagingBytes);
  ASSERT_TRUE(pair.Poll(
      [&] { return pair.b.Count(kReceived) == accepted && pair.a.Count(kSent) == accepted; }));
  std::set<uint64_t> received, sent;
  for (const SeenEvent& event : pair.b.Seen(kReceived)) received.insert(event.header.request);
  for (const SeenEvent& event : pair.a.Seen(kSent)) sent.insert(event.post_id);
  EXPECT_EQ(received.size(), accepted);
  EXPECT_EQ(sent.size(), accepted);
  EXPECT_TRUE(pair.a.transport()
                  .Post(pair.transfer, 999, TestHeader(999, memory.bytes()), memory.bytes())
                  .ok());
  EXPECT_TRUE(pair.Poll([&] { return pair.b.Count(kReceived) == accepted + 1; }));
}

TEST_P(KvTransportConformance, ReleaseFollowsEverythingSent) {
  Pair pair(fabric_.get());
  TestMemory memory(&pair.a.transport(), size_t{1} << 16, 5);
  const TransferId other = pair.a.transport().Prepare(pair.b.transport().address()).value();
  EXPECT_NE(other, pair.transfer);
  for (uint64_t id = 0; id < 5; ++id) {
    ASSERT_TRUE(pair.a.transport()
                    .Post(pair.transfer, id, TestHeader(id, memory.bytes()), memory.bytes())
                    .ok());
  }
  pair.a.transport().Release(pair.transfer);
  pair.a.transport().Release(pair.transfer);
  EXPECT_EQ(pair.a.transport()
                .Post(pair.transfer, 9, TestHeader(9, memory.bytes()), memory.bytes())
                .code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(pair.a.transport().Notify(pair.transfer, memory.Part(0, 1)).code(),
            absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(pair.Poll([&] { return pair.a.Count(kReleased) == 1; }));
  EXPECT_EQ(pair.a.Count(kSent, pair.transfer), 5u);
  EXPECT_EQ(pair.a.seen.back().kind, kReleased);
  EXPECT_EQ(pair.a.seen.back().transfer, pair.transfer);
  pair.a.transport().Release(pair.transfer);
  pair.a.transport().Release(TransferId(12345));
  // The other transfer to the same peer does not notice.
  ASSERT_TRUE(
      pair.a.transport().Post(other, 10, TestHeader(10, memory.bytes()), memory.bytes()).ok());
  pair.a.transport().Release(other);
  ASSERT_TRUE(
      pair.Poll([&] { return pair.a.Count(kReleased) == 2 && pair.b.Count(kReceived) == 6; }));
  EXPECT_EQ(pair.a.Count(kReleased, pair.transfer), 1u);
  EXPECT_EQ(pair.a.Count(kPeerLost), 0u);
}

TEST_P(KvTransportConformance, CopiesNotifies) {
  Pair pair(fabric_.get());
  std::vector<std::vector<std::byte>> sent;
  for (const size_t size : {0, 1, 100, 4096}) {
    std::vector<std::byte> bytes(size, static_cast<std::byte>(size % 251));
    sent.push_back(bytes);
    ASSERT_TRUE(pair.a.transport().Notify(pair.transfer, bytes).ok());
    std::fill(bytes.begin(), bytes.end(), std::byte{0xff});
  }
  ASSERT_TRUE(pair.Poll([&] { return pair.b.Count(kNotified) == sent.size(); }));
  for (const SeenEvent& event : pair.b.Seen(kNotified)) {
    EXPECT_EQ(std::count(sent.begin(), sent.end(), event.payload), 1) << event.payload.size();
  }
}

TEST_P(KvTransportConformance, PollGivesAtMostWhatIsAskedFor) {
  Pair pair(fabric_.get());
  TestMemory memory(&pair.a.transport(), 100, 6);
  for (uint64_t id = 0; id < 7; ++id) {
    ASSERT_TRUE(pair.a.transport()
                    .Post(pair.transfer, id, TestHeader(id, memory.bytes()), memory.bytes())
                    .ok());
  }
  ASSERT_TRUE(PollUntil({&pair.a}, [&] { return pair.a.Count(kSent) == 7; }));
  while (pair.b.Count(kReceived) < 7) {
    const size_t before = pair.b.seen.size();
    if (pair.b.Poll(2) == 0) {
      ASSERT_TRUE(pair.bell.Wait(std::chrono::seconds(60)));
    }
    ASSERT_LE(pair.b.seen.size() - before, 2u);
  }
}

TEST_P(KvTransportConformance, ArrivalWakesTheReceiver) {
  Bell a_bell, b_bell;
  TestPeer a(fabric_->NewEndpoint(), &a_bell);
  TestPeer b(fabric_->NewEndpoint(), &b_bell);
  const TransferId transfer = a.transport().Prepare(b.transport().address()).value();
  TestMemory memory(&a.transport(), size_t{1} << 18, 7);
  for (uint64_t id = 1; id <= 3; ++id) {
    ASSERT_TRUE(
        a.transport().Post(transfer, id, TestHeader(id, memory.bytes()), memory.bytes()).ok());
    // Nobody polls the sender: b must hear of it all the same.
    while (b.Count(kReceived) < id) {
      ASSERT_TRUE(b_bell.Wait(std::chrono::seconds(60)));
      b.Poll();
    }
    while (a.Count(kSent) < id) {
      ASSERT_TRUE(a_bell.Wait(std::chrono::seconds(60)));
      a.Poll();
    }
  }
}

TEST_P(KvTransportConformance, AnEndpointMaySendToItself) {
  Bell bell;
  TestPeer self(fabric_->NewEndpoint(), &bell);
  const TransferId transfer = self.transport().Prepare(self.transport().address()).value();
  TestMemory memory(&self.transport(), size_t{1} << 16, 13);
  for (uint64_t id = 0; id < kTestMaxPosts; ++id) {
    ASSERT_TRUE(
        self.transport().Post(transfer, id, TestHeader(id, memory.bytes()), memory.bytes()).ok());
  }
  self.transport().Release(transfer);
  ASSERT_TRUE(PollUntil({&self}, [&] {
    return self.Count(kReceived) == kTestMaxPosts && self.Count(kReleased) == 1;
  }));
  EXPECT_EQ(self.Count(kSent), kTestMaxPosts);
}

TEST_P(KvTransportConformance, LosesAPeerOnce) {
  Pair pair(fabric_.get());
  TestPeer c(fabric_->NewEndpoint(), &pair.bell);
  TestMemory memory(&pair.a.transport(), size_t{1} << 20, 8);
  const auto post = [&](TransferId transfer, uint64_t id) {
    return pair.a.transport().Post(transfer, id, TestHeader(id, memory.bytes()), memory.bytes());
  };
  ASSERT_TRUE(post(pair.transfer, 1).ok());
  ASSERT_TRUE(pair.Poll([&] { return pair.b.Count(kReceived) == 1 && pair.a.Count(kSent) == 1; }));
  const TransferId idle = pair.a.transport().Prepare(pair.b.transport().address()).value();
  // Fill the receiver, so that posts are in flight when it goes.
  for (uint64_t id = 2; id < 2 + kTestMaxPosts; ++id) ASSERT_TRUE(post(pair.transfer, id).ok());
  pair.b.Destroy();
  ASSERT_TRUE(PollUntil({&pair.a}, [&] {
    return pair.a.Count(kPeerLost, pair.transfer) == 1 && pair.a.Count(kPeerLost, idle) == 1;
  }));
  EXPECT_FALSE(pair.a.Seen(kPeerLost)[0].status.ok());
  EXPECT_EQ(pair.a.seen.back().kind, kPeerLost);
  EXPECT_EQ(post(pair.transfer, 100).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(post(idle, 100).code(), absl::StatusCode::kFailedPrecondition);
  pair.a.transport().Release(pair.transfer);
  pair.a.transport().Release(idle);
  ASSERT_TRUE(PollUntil({&pair.a}, [&] { return pair.a.Count(kReleased) == 2; }));
  EXPECT_EQ(pair.a.Count(kPeerLost), 2u);

  // All slots are free again, for another peer.
  const size_t sent = pair.a.Count(kSent);
  const TransferId next = pair.a.transport().Prepare(c.transport().address()).value();
  for (uint64_t id = 0; id < kTestMaxPosts; ++id) ASSERT_TRUE(post(next, id).ok()) << id;
  ASSERT_TRUE(PollUntil({&pair.a, &c}, [&] {
    return c.Count(kReceived) == kTestMaxPosts && pair.a.Count(kSent) == sent + kTestMaxPosts;
  }));
}

TEST_P(KvTransportConformance, ReportsAnAddressWithoutPeer) {
  Pair pair(fabric_.get());
  const std::string stale = pair.b.transport().address();
  pair.b.Destroy();
  TestMemory memory(&pair.a.transport(), 4096, 9);
  const TransferId transfer = pair.a.transport().Prepare(stale).value();
  // The transfer may or may not have been found lost already.
  const absl::Status status =
      pair.a.transport().Post(transfer, 1, TestHeader(1, memory.bytes()), memory.bytes());
  EXPECT_TRUE(status.ok() || absl::IsFailedPrecondition(status)) << status;
  ASSERT_TRUE(PollUntil({&pair.a}, [&] { return pair.a.Count(kPeerLost, transfer) == 1; }));
  EXPECT_EQ(pair.a.Count(kSent, transfer), 0u);
  pair.a.transport().Release(transfer);
  ASSERT_TRUE(PollUntil({&pair.a}, [&] { return pair.a.Count(kReleased, transfer) == 1; }));
}

// Three endpoints post random slices to each other, each from one loop.
TEST_P(KvTransportConformance, RandomTrafficArrivesExactlyOnce) {
  constexpr int kPeers = 3;
  constexpr size_t kMemory = size_t{1} << 20;
  constexpr uint64_t kMessages = 400;
  for (const uint64_t seed : {11, 12}) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    Bell bell;
    std::vector<std::unique_ptr<TestPeer>> peers;
    std::vector<std::unique_ptr<TestMemory>> memories;
    std::vector<TestPeer*> all;
    for (int i = 0; i < kPeers; ++i) {
      peers.push_back(std::make_unique<TestPeer>(fabric_->NewEndpoint(), &bell));
      memories.push_back(
          std::make_unique<TestMemory>(&peers[i]->transport(), kMemory, seed * 10 + i));
      all.push_back(peers[i].get());
    }
    std::map<std::pair<int, int>, TransferId> transfers;
    uint64_t posted = 0, sent = 0, received = 0;
    std::map<uint64_t, int> source;  // of each message not yet received
    const auto absorb = [&] {
      for (int i = 0; i < kPeers; ++i) {
        peers[i]->Poll(1 + static_cast<int>(rng.Below(8)));
        for (const SeenEvent& event : peers[i]->seen) {
          if (event.kind == kSent) ++sent;
          if (event.kind != kReceived) continue;
          ++received;
          auto it = source.find(event.header.request);
          ASSERT_NE(it, source.end());
          const auto expected =
              memories[it->second]->Part(event.header.checksum, event.header.payload_bytes);
          ASSERT_TRUE(SameBytes(event.payload, expected));
          source.erase(it);
        }
        peers[i]->seen.clear();
      }
    };
    while (posted < kMessages) {
      const int from = static_cast<int>(rng.Below(kPeers));
      const int to = (from + 1 + static_cast<int>(rng.Below(kPeers - 1))) % kPeers;
      auto [it, is_new] = transfers.try_emplace({from, to});
      if (is_new) {
        it->second = peers[from]->transport().Prepare(peers[to]->transport().address()).value();
      }
      const size_t size = 1 + rng.Below(rng.Chance(0.1) ? kMemory - 1 : 10000);
      const size_t at = rng.Below(kMemory - size + 1);
      const auto payload = memories[from]->Part(at, size);
      KvMessageHeader header = TestHeader(posted, payload);
      header.checksum = at;
      source[posted] = from;
      const absl::Status status =
          peers[from]->transport().Post(it->second, posted, header, payload);
      if (status.ok()) {
        ++posted;
      } else {
        ASSERT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
        source.erase(posted);
      }
      if (!status.ok() || rng.Chance(0.3)) absorb();
      if (HasFatalFailure()) return;
    }
    for (int idle = 0; (received < posted || sent < posted) && idle < 1000;) {
      const uint64_t before = received + sent;
      absorb();
      if (HasFatalFailure()) return;
      if (received + sent == before) {
        ++idle;
        bell.Wait(std::chrono::milliseconds(50));
      }
    }
    EXPECT_EQ(received, posted);
    EXPECT_EQ(sent, posted);
    EXPECT_TRUE(source.empty());
  }
}

// Each endpoint on a thread of its own, both sending and receiving, sleeping on their wakeups.
TEST_P(KvTransportConformance, EndpointsWorkFromTheirOwnThreads) {
  constexpr uint64_t kMessages = 200;
  constexpr size_t kBytes = 20000;
  std::vector<std::unique_ptr<Bell>> bells;
  std::vector<std::unique_ptr<TestPeer>> peers;
  for (int i = 0; i < 2; ++i) {
    bells.push_back(std::make_unique<Bell>());
    peers.push_back(std::make_unique<TestPeer>(fabric_->NewEndpoint(), bells[i].get()));
  }
  const auto loop = [&](int self) {
    TestPeer& peer = *peers[self];
    TestMemory memory(&peer.transport(), kBytes, self);
    const TransferId transfer =
        peer.transport().Prepare(peers[1 - self]->transport().address()).value();
    uint64_t posted = 0;
    for (int idle = 0; idle < 1000;) {
      while (posted < kMessages &&
             peer.transport()
                 .Post(transfer, posted, TestHeader(posted, memory.bytes()), memory.bytes())
                 .ok()) {
        ++posted;
      }
      if (posted == kMessages) peer.transport().Release(transfer);
      if (peer.Poll() > 0) continue;
      if (peer.Count(kReceived) == kMessages && peer.Count(kReleased) == 1) break;
      if (!bells[self]->Wait(std::chrono::milliseconds(60))) ++idle;
    }
  };
  {
    Thread first("first", [&] { loop(0); });
    Thread second("second", [&] { loop(1); });
  }
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(peers[i]->Count(kReceived), kMessages);
    EXPECT_EQ(peers[i]->Count(kSent), kMessages);
    EXPECT_EQ(peers[i]->Count(kReleased), 1u);
    EXPECT_EQ(peers[i]->Count(kPeerLost), 0u);
  }
}

}  // namespace
}  // namespace baton::transport
