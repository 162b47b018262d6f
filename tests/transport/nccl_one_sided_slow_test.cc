// One-sided NCCL hand-offs: when they are made and when not, and what becomes of them when a side
// goes.

#include "tests/simt/memory.h"
#include "tests/simt/nccl_window.h"
#include "tests/transport/nccl_handoff_fixture.h"

namespace baton::transport {
namespace {

using enum KvEventKind;

simt::Options OneSidedNccl() {
  return {.seed = 7, .devices = kHandoffGpus, .nccl_version = kOneSidedNccl};
}

NcclTransportOptions OneSided() {
  NcclTransportOptions options = TestNcclOptions();
  options.one_sided = true;
  return options;
}

struct HeldPuts {
  explicit HeldPuts(int device) { simt::HoldPuts(device); }
  ~HeldPuts() { End(); }
  void End() const { simt::HoldPuts(-1); }
};

class NcclOneSidedHandoff : public NcclHandoff {
 protected:
  static void SetUpTestSuite() { simt::SetOptions(OneSidedNccl()); }

  // Posts of several sizes, `count` of them, arrive intact.
  void ExpectDelivers(Endpoint& from, Endpoint& to, uint64_t count) {
    const TransferId transfer = from.Prepare(to);
    const size_t received = to.peer.Count(kReceived);
    uint64_t posted = 0;
    const auto size = [](uint64_t id) { return size_t{1} << (id % 19); };
    ASSERT_TRUE(Poll({&from, &to}, [&] {
      while (posted < count && from.Post(transfer, posted, posted * 100, size(posted)).ok()) {
        ++posted;
      }
      return to.peer.Count(kReceived) == received + count &&
             from.peer.Count(kSent, transfer) == count;
    }));
    const std::vector<SeenEvent> seen = to.peer.Seen(kReceived);
    for (size_t i = received; i < seen.size(); ++i) {
      const uint64_t id = seen[i].header.request;
      EXPECT_TRUE(SameBytes(seen[i].payload, from.memory.Part(id * 100, size(id)))) << id;
    }
    from.peer.transport().Release(transfer);
    ASSERT_TRUE(Poll({&from, &to}, [&] { return from.peer.Count(kReleased, transfer) == 1; }));
  }
};

TEST_F(NcclOneSidedHandoff, BatchesArePutWhereBothEndsAsk) {
  auto a = Make(OneSided()), b = Make(OneSided());
  ExpectDelivers(*a, *b, 200);
  ExpectDelivers(*b, *a, 50);
  EXPECT_GT(a->counters().batches_put, 2u);
  EXPECT_EQ(a->counters().batches_put, a->counters().batches_sent);
  EXPECT_EQ(a->counters().communicators, 2u);  // one in each direction
}

// The window takes the largest message, and more batches than it has room for at a time.
TEST_F(NcclOneSidedHandoff, LargeMessagesFillTheWindow) {
  auto a = Make(OneSided()), b = Make(OneSided());
  const TransferId transfer = a->Prepare(*b);
  uint64_t posted = 0;
  constexpr uint64_t kCount = 6;
  ASSERT_TRUE(Poll({a.get(), b.get()}, [&] {
    while (posted < kCount && a->Post(transfer, posted, 0, kTestMaxMessageBytes).ok()) ++posted;
    return b->peer.Count(kReceived) == kCount;
  }));
  for (const SeenEvent& event : b->peer.Seen(kReceived)) {
    EXPECT_TRUE(SameBytes(event.payload, a->memory.Part(0, kTestMaxMessageBytes)));
  }
  EXPECT_EQ(a->counters().batches_put, a->counters().batches_sent);
}

// As kernels see it: what stands in staging is behind the wait for its own signal.
TEST_F(NcclOneSidedHandoff, NothingIsTakenBeforeItsSignal) {
  const auto make = [&] {
    NcclTransportOptions options = OneSided();
    options.gpu = next_gpu_++;
    auto made = CreateNcclTransport(options, std::make_shared<MonotonicClock>()).value();
    made->SetWakeup([this] { bell_.Ring(); });
    return made;
  };
  const auto from = make(), to = make();
  const std::vector<std::byte> host(5000, std::byte{7});
  const std::shared_ptr<std::byte> memory = from->Allocate(host.size()).value();
  const std::span<std::byte> payload(memory.get(), host.size());
  ASSERT_TRUE(from->CopyPayload(payload, host).ok());
  const RegionId region = from->Register(payload).value();
  const TransferId transfer = from->Prepare(to->address()).value();
  std::vector<KvEvent> sent;
  for (uint64_t id = 0; id < 5; ++id) {
    ASSERT_TRUE(from->Post(transfer, id, TestHeader(id, payload), payload).ok());
    from->Flush(transfer);
    size_t received = 0;
    for (int round = 0; round < 1000 && received == 0; ++round) {
      std::vector<KvEvent> events;
      to->Poll(&events, 8);
      for (const KvEvent& event : events) {
        ASSERT_EQ(event.payload.size(), payload.size());
        EXPECT_EQ(simt::Memory::Get().FirstWithout(event.payload.data(), event.payload.size(),
                                                   simt::kInitialized),
                  nullptr)
            << id;
        ++received;
      }
      if (received == 0) bell_.Wait(std::chrono::milliseconds(20));
    }
    EXPECT_EQ(received, 1u);
    from->Poll(&sent, 8);
  }
  EXPECT_EQ(from->counters().batches_put, 5u);
  from->Unregister(region);
}

TEST_F(NcclOneSidedHandoff, AnEndpointSendsToItself) {
  auto a = Make(OneSided());
  ExpectDelivers(*a, *a, 20);
  EXPECT_EQ(a->counters().batches_put, 0u);
}

// Whichever end cannot or does not: they send and receive.
TEST_F(NcclOneSidedHandoff, ElseTheySendAndReceive) {
  const auto expect_pairs = [&](const NcclTransportOptions& from, const NcclTransportOptions& to,
                                const simt::Options& nccl) {
    const simt::ScopedOptions scope(nccl);
    auto a = Make(from), b = Make(to);
    ExpectDelivers(*a, *b, 20);
    EXPECT_GT(a->counters().batches_sent, 0u);
    EXPECT_EQ(a->counters().batches_put, 0u);
    EXPECT_EQ(a->peer.Count(kPeerLost), 0u);
  };
  expect_pairs(OneSided(), TestNcclOptions(), OneSidedNccl());
  expect_pairs(TestNcclOptions(), OneSided(), OneSidedNccl());
  NcclTransportOptions pinned = OneSided();
  pinned.memory = PayloadMemory::kPinned;
  expect_pairs(OneSided(), pinned, OneSidedNccl());
  simt::Options other = OneSidedNccl();
  other.nccl_version = 22809;
  expect_pairs(OneSided(), OneSided(), other);
  // Found out when the window is made.
  other = OneSidedNccl();
  other.nccl_windows = false;
  expect_pairs(OneSided(), OneSided(), other);
  other = OneSidedNccl();
  other.nccl_apart = true;
  expect_pairs(OneSided(), OneSided(), other);
}

TEST_F(NcclOneSidedHandoff, CommunicatorsMakeRoomForEachOther) {
  NcclTransportOptions few = OneSided();
  few.max_communicators = 1;
  auto hub = Make(few);
  std::vector<std::unique_ptr<Endpoint>> others;
  for (int i = 0; i < 3; ++i) others.push_back(Make(OneSided()));
  for (int round = 0; round < 3; ++round) {
    for (const auto& other : others) {
      ExpectDelivers(*hub, *other, 3);
      ExpectDelivers(*other, *hub, 3);
    }
  }
  EXPECT_GE(hub->counters().evictions, 8u);
  EXPECT_EQ(hub->counters().batches_put, hub->counters().batches_sent);
}

// Each round the other end goes while batches of both directions are under way, and another one
// comes to its GPU, with windows of its own.
TEST_F(NcclOneSidedHandoff, PeersComeAndGoInTheMidstOfPuts) {
  constexpr size_t kSize = 900'000;
  const auto at = [](uint64_t id) { return id % 7 * 1000; };
  auto stays = Make(OneSided());
  for (int round = 0; round < 5; ++round) {
    NcclTransportOptions options = OneSided();
    options.gpu = 1;
    auto goes = std::make_unique<Endpoint>(options, &bell_);
    const TransferId out = stays->Prepare(*goes), in = goes->Prepare(*stays);
    uint64_t id = 0;
    const size_t before = stays->peer.Count(kReceived);
    ASSERT_TRUE(Poll({stays.get(), goes.get()}, [&] {
      while (stays->Post(out, id, at(id), kSize).ok()) ++id;
      while (goes->Post(in, id, at(id), kSize).ok()) ++id;
      return stays->peer.Count(kReceived) > before + static_cast<size_t>(round);
    }));
    goes.reset();
    ASSERT_TRUE(Poll({stays.get()}, [&] { return stays->peer.Count(kPeerLost, out) == 1; }));
    stays->peer.transport().Release(out);
    ASSERT_TRUE(Poll({stays.get()}, [&] { return stays->peer.Count(kReleased, out) == 1; }));
    for (const SeenEvent& event : stays->peer.Seen(kReceived)) {
      // Of the one that went: all have the same memory.
      const uint64_t sent = event.header.request;
      EXPECT_TRUE(SameBytes(event.payload, stays->memory.Part(at(sent), kSize))) << sent;
    }
    stays->peer.seen.clear();
  }
  auto last = Make(OneSided());
  ExpectDelivers(*stays, *last, 20);
}

// The sender's copy engine stands in the midst of a put until both sides have given each other up,
// and the receiver has served others: what comes then meets memory that nobody has.
TEST_F(NcclOneSidedHandoff, ALateWriterDisturbsNobody) {
  NcclTransportOptions impatient = OneSided();
  impatient.transfer_timeout = Duration::Millis(1500);
  auto late = Make(impatient), other = Make(OneSided()), to = Make(OneSided());
  auto leaves = Make(OneSided());
  KvTransport& inner = static_cast<StagedTransport&>(to->peer.transport()).inner();
  ExpectDelivers(*late, *leaves, 3);
  ExpectDelivers(*late, *to, 3);
  const TransferId transfer = late->Prepare(*to);
  const uint64_t put = late->counters().batches_put;
  const HeldPuts held(0);
  ASSERT_TRUE(late->Post(transfer, 1, 0, kTestMaxMessageBytes).ok());
  late->peer.transport().Flush(transfer);
  ASSERT_TRUE(Poll({late.get(), to.get()}, [&] { return late->counters().batches_put > put; }));
  // The GPU of a put that stands gives no memory back: that must not stop who is to abort it.
  leaves.reset();
  // The receiver gives its staging back though the put still stands.
  ASSERT_TRUE(Poll({late.get(), to.get()}, [&] {
    return late->counters().peers_lost == 2 &&
           static_cast<NcclTransport&>(inner).staging_in_use_bytes() == 0;
  }));
  ExpectDelivers(*other, *to, 30);
  // Its payload is its own no sooner than the put has ended.
  EXPECT_EQ(late->peer.Count(kPeerLost), 0u);
  held.End();
  ASSERT_TRUE(Poll({late.get()}, [&] { return late->peer.Count(kPeerLost, transfer) == 1; }));
  ExpectDelivers(*late, *to, 30);
  ExpectDelivers(*other, *to, 30);
}

// A peer that announces what it has not put would leave a stream that stands: nothing is taken that
// was not granted.
TEST_F(NcclOneSidedHandoff, WhatWasNotGrantedIsNotTaken) {
  auto a = Make(OneSided()), b = Make(OneSided());
  const NcclAddress address = AddressOf(b->peer.transport());
  const HandoffMessage hello{.kind = HandoffKind::kHello, .number = address.incarnation};
  const HandoffMessage open{
      .kind = HandoffKind::kOpen, .number = 1, .address = 4096, .text = std::string(128, 'i')};
  HandoffMessage huge = open;
  huge.address = uint64_t{1} << 40;
  const std::vector<std::vector<HandoffMessage>> talks = {
      {hello, {.kind = HandoffKind::kPlaced, .number = 1}},
      {hello, huge},
      {hello, open, {.kind = HandoffKind::kPlaced, .number = 1}},
  };
  for (const auto& talk : talks) {
    Stranger stranger(address.port);
    for (const HandoffMessage& message : talk) Say(stranger, message);
    EXPECT_TRUE(stranger.AwaitEnd());
  }
  EXPECT_EQ(b->counters().malformed_messages, 3u);
  ExpectDelivers(*a, *b, 10);
}

// What both sides do together never ends when one does not come, but for the abort.
TEST_F(NcclOneSidedHandoff, ASenderThatBreaksOffWhileItConnectsIsForgotten) {
  NcclTransportOptions lonely = OneSided();
  lonely.max_peers = 1;
  auto a = Make(OneSided()), b = Make(lonely);
  {
    const NcclAddress address = AddressOf(b->peer.transport());
    Stranger stranger(address.port);
    Say(stranger, {.kind = HandoffKind::kHello, .number = address.incarnation});
    // Nobody else has this id.
    Say(stranger,
        {.kind = HandoffKind::kOpen, .number = 1, .address = 4096, .text = std::string(128, 'j')});
    ASSERT_TRUE(Poll({b.get()}, [&] { return b->counters().communicators == 1; }));
  }
  // It has the only place until it is forgotten.
  TransferId transfer = a->Prepare(*b);
  size_t lost = 0;
  ASSERT_TRUE(Poll({a.get(), b.get()}, [&] {
    if (a->peer.Count(kPeerLost) > lost) {
      ++lost;
      a->peer.transport().Release(transfer);
      transfer = a->Prepare(*b);
    }
    if (a->peer.transport().Post(transfer, 1, TestHeader(1, {}), {}).ok()) {
      a->peer.transport().Flush(transfer);
    }
    return b->peer.Count(kReceived) > 0;
  }));
}

}  // namespace
}  // namespace baton::transport
