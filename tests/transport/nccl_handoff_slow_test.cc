// What the NCCL hand-off does beyond every transport's contract: batches, communicators that come
// and go, time limits, and what it refuses.

#include <gmock/gmock.h>

#include "base/random.h"
#include "base/thread.h"
#include "tests/transport/nccl_fabric.h"
#include "tests/transport/nccl_handoff_fixture.h"
#include "transport/nccl/payload_memory.h"

namespace baton::transport {
namespace {

using enum KvEventKind;
using testing::HasSubstr;

constexpr Duration kNever = Duration::Seconds(3600);

TEST_F(NcclHandoff, SmallPostsTravelTogether) {
  NcclTransportOptions options = TestNcclOptions();
  options.coalesce_bytes = uint64_t{1} << 20;
  options.coalesce_delay = kNever;
  auto a = Make(options), b = Make();
  const TransferId transfer = a->Prepare(*b);
  constexpr size_t kBytes = 64 * 1024;
  // 15 of them are less than it takes.
  for (uint64_t id = 0; id < 15; ++id) ASSERT_TRUE(a->Post(transfer, id, id * kBytes, kBytes).ok());
  ASSERT_TRUE(Poll({a.get(), b.get()}, [&] { return a->counters().communicators == 1; }));
  EXPECT_EQ(a->counters().batches_sent, 0u);
  ASSERT_TRUE(a->Post(transfer, 15, 15 * kBytes, kBytes).ok());
  ASSERT_TRUE(Poll({a.get(), b.get()}, [&] { return b->peer.Count(kReceived) == 16; }));
  EXPECT_EQ(a->counters().batches_sent, 1u);
  for (const SeenEvent& event : b->peer.Seen(kReceived)) {
    const uint64_t id = event.header.request;
    EXPECT_TRUE(SameBytes(event.payload, a->memory.Part(id * kBytes, kBytes))) << id;
  }
  // The rest waits for who says that there is no more, or for the transfer's end.
  ASSERT_TRUE(a->Post(transfer, 16, 100, 1000).ok());
  ASSERT_TRUE(a->Post(transfer, 17, 5000, 1000).ok());
  a->peer.transport().Flush(transfer);
  ASSERT_TRUE(Poll({a.get(), b.get()}, [&] { return b->peer.Count(kReceived) == 18; }));
  ASSERT_TRUE(a->Post(transfer, 18, 77, 0).ok());
  a->peer.transport().Release(transfer);
  ASSERT_TRUE(Poll({a.get(), b.get()}, [&] {
    return a->peer.Count(kReleased) == 1 && b->peer.Count(kReceived) == 19;
  }));
  EXPECT_EQ(a->peer.Count(kSent), 19u);
}

TEST_F(NcclHandoff, ALonePostGoesWhenItsTimeIsOver) {
  auto a = Make(), b = Make();
  const TransferId transfer = a->Prepare(*b);
  ASSERT_TRUE(a->Post(transfer, 1, 0, 100).ok());
  EXPECT_TRUE(Poll({a.get(), b.get()}, [&] { return b->peer.Count(kReceived) == 1; }));
}

// More receivers than a sender may have communicators, and the other way round.
TEST_F(NcclHandoff, CommunicatorsMakeRoomForEachOther) {
  NcclTransportOptions few = TestNcclOptions();
  few.max_communicators = 2;
  auto hub = Make(few);
  std::vector<std::unique_ptr<Endpoint>> others;
  std::vector<Endpoint*> all = {hub.get()};
  std::vector<TransferId> out, in;
  for (int i = 0; i < 5; ++i) {
    others.push_back(Make());
    all.push_back(others.back().get());
    out.push_back(hub->Prepare(*others.back()));
    in.push_back(others.back()->Prepare(*hub));
  }
  uint64_t id = 0;
  for (int round = 0; round < 3; ++round) {
    for (size_t i = 0; i < others.size(); ++i) {
      ++id;
      ASSERT_TRUE(hub->Post(out[i], id, id, 3000).ok());
      ASSERT_TRUE(others[i]->Post(in[i], id, id, 3000).ok());
    }
    ASSERT_TRUE(Poll(all, [&] { return hub->peer.Count(kReceived) == id; })) << round;
    ASSERT_TRUE(Poll(all, [&] { return hub->peer.Count(kSent) == id; })) << round;
  }
  for (const auto& other : others) {
    EXPECT_TRUE(Poll({other.get()}, [&] { return other->peer.Count(kReceived) == 3; }));
    EXPECT_EQ(other->peer.Count(kPeerLost), 0u);
  }
  EXPECT_EQ(hub->peer.Count(kPeerLost), 0u);
  EXPECT_GE(hub->counters().evictions, 6u);
}

// A receiver whose loop does not poll: its staging fills up, and then its sender loses patience.
TEST_F(NcclHandoff, AReceiverThatNeverPollsIsLost) {
  NcclTransportOptions options = TestNcclOptions();
  options.stall_timeout = Duration::Millis(300);
  auto a = Make(options), deaf = Make(), good = Make();
  const TransferId to_deaf = a->Prepare(*deaf), to_good = a->Prepare(*good);
  uint64_t id = 0;
  for (int i = 0; i < 24; ++i) ASSERT_TRUE(a->Post(to_deaf, ++id, 0, size_t{1} << 20).ok());
  ASSERT_TRUE(a->Post(to_good, ++id, 0, 1000).ok());
  ASSERT_TRUE(Poll({a.get(), good.get()}, [&] { return a->peer.Count(kPeerLost) == 1; }));
  EXPECT_EQ(a->peer.Seen(kPeerLost)[0].transfer, to_deaf);
  EXPECT_THAT(a->peer.Seen(kPeerLost)[0].status.message(), HasSubstr("took no data"));
  EXPECT_GT(a->peer.Count(kSent, to_deaf), 4u);
  // The others go on, and so does that one once it polls: what was sent is there.
  ASSERT_TRUE(a->Post(to_good, ++id, 0, 1000).ok());
  ASSERT_TRUE(Poll({a.get(), good.get()}, [&] { return good->peer.Count(kReceived) == 2; }));
  const size_t sent = a->peer.Count(kSent, to_deaf);
  ASSERT_TRUE(Poll({deaf.get()}, [&] { return deaf->peer.Count(kReceived) >= sent; }));
  a->peer.transport().Release(to_deaf);
  ASSERT_TRUE(Poll({a.get()}, [&] { return a->peer.Count(kReleased, to_deaf) == 1; }));
  const TransferId again = a->Prepare(*deaf);
  ASSERT_TRUE(a->Post(again, ++id, 0, 1000).ok());
  ASSERT_TRUE(Poll({a.get(), deaf.get()}, [&] { return a->peer.Count(kSent, again) == 1; }));
}

// Two ranks that add up while each hands over to two receivers, and the receivers add up, too: what
// stands in the streams of one GPU never waits for what cannot be launched on it.
TEST_F(NcclHandoff, CollectivesAndHandoffsShareTheGpus) {
  constexpr int kRanks = 4, kCalls = 40;
  constexpr uint64_t kPosts = 60;
  const auto launches = std::make_shared<std::mutex>();
  NcclTransportOptions options = TestNcclOptions();
  options.launches = launches;
  std::vector<std::unique_ptr<Endpoint>> endpoints;  // on the GPUs of the ranks
  std::vector<Endpoint*> all;
  for (int rank = 0; rank < kRanks; ++rank) {
    endpoints.push_back(Make(options));
    all.push_back(endpoints.back().get());
  }
  NcclGroupFabric fabric(kHandoffGpus);
  std::vector<std::unique_ptr<Rendezvous>> rendezvous =
      fabric.NewRendezvous(kRanks, /*knows_all=*/true);
  const Thread collectives("collectives", [&] {
    OnRanks(kRanks, [&](int rank) {
      auto group = rendezvous[static_cast<size_t>(rank)]->Join(TestGroup(kRanks, rank)).value();
      for (int call = 0; call < kCalls; ++call) {
        std::vector<float> sum(50'000, static_cast<float>(rank + call));
        ASSERT_TRUE(group
                        ->AllReduceSum(std::as_writable_bytes(std::span(sum)), ReduceType::kF32,
                                       Duration::Seconds(20))
                        .ok());
        EXPECT_EQ(sum.back(), static_cast<float>(kRanks * call + 6));
      }
    });
  });
  std::vector<TransferId> transfers;
  for (size_t i = 0; i < 4; ++i) {
    transfers.push_back(endpoints[i / 2]->Prepare(*endpoints[2 + i % 2]));
  }
  std::vector<uint64_t> posted(transfers.size(), 0);
  const auto received = [&](size_t i) { return endpoints[i]->peer.Count(kReceived); };
  EXPECT_TRUE(Poll(all, [&] {
    for (size_t i = 0; i < transfers.size(); ++i) {
      while (posted[i] < kPosts &&
             endpoints[i / 2]->Post(transfers[i], posted[i], posted[i] * 100, 200'000).ok()) {
        ++posted[i];
      }
    }
    return received(2) == 2 * kPosts && received(3) == 2 * kPosts;
  }));
}

TEST_F(NcclHandoff, TwoEndpointsOfOneGpuAreTold) {
  NcclTransportOptions options = TestNcclOptions();
  auto a = std::make_unique<Endpoint>(options, &bell_);
  auto b = std::make_unique<Endpoint>(options, &bell_);
  const TransferId transfer = a->Prepare(*b);
  ASSERT_TRUE(Poll({a.get()}, [&] { return a->peer.Count(kPeerLost, transfer) == 1; }));
  EXPECT_THAT(a->peer.Seen(kPeerLost)[0].status.message(), HasSubstr("a GPU of its own"));
}

TEST_F(NcclHandoff, AnEndpointThatOnlySendsSaysSo) {
  NcclTransportOptions options = TestNcclOptions();
  options.staging_bytes = 0;
  auto sender = Make(options), b = Make();
  const TransferId good = sender->Prepare(*b), refused = b->Prepare(*sender);
  ASSERT_TRUE(sender->Post(good, 1, 0, 1000).ok());
  ASSERT_TRUE(Poll({sender.get(), b.get()}, [&] {
    return b->peer.Count(kReceived) == 1 && b->peer.Count(kPeerLost, refused) == 1;
  }));
  EXPECT_THAT(b->peer.Seen(kPeerLost)[0].status.message(), HasSubstr("only sends"));
}

TEST_F(NcclHandoff, PageableMemoryIsRefused) {
  auto a = CreateNcclTransport(TestNcclOptions(), std::make_shared<MonotonicClock>()).value();
  std::vector<std::byte> memory(100);
  const absl::Status refused = a->Register(memory).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(refused.message(), HasSubstr("take them from Allocate"));
}

TEST_F(NcclHandoff, OptionsOutOfRangeAreRefused) {
  const auto code = [](const std::function<void(NcclTransportOptions&)>& change) {
    NcclTransportOptions options = TestNcclOptions();
    change(options);
    return CreateNcclTransport(options, std::make_shared<MonotonicClock>()).status().code();
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(code([](auto& o) { o.max_communicators = 0; }), kInvalid);
  EXPECT_EQ(code([](auto& o) { o.staging_bytes = o.max_message_bytes - 1; }), kInvalid);
  EXPECT_EQ(code([](auto& o) { o.stall_timeout = Duration(); }), kInvalid);
  EXPECT_EQ(code([](auto& o) { o.gpu = kHandoffGpus; }), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(code([](auto& o) { o.staging_bytes = uint64_t{1} << 40; }),
            absl::StatusCode::kResourceExhausted);
}

TEST_F(NcclHandoff, PinnedMemoryWhereGpusCannotReachEachOther) {
  EXPECT_EQ(ChooseMemory(0, PayloadMemory::kAuto), PayloadMemory::kGpu);
  const simt::ScopedOptions apart({.devices = kHandoffGpus, .peer_access = false});
  EXPECT_EQ(ChooseMemory(0, PayloadMemory::kAuto), PayloadMemory::kPinned);
  EXPECT_EQ(ChooseMemory(0, PayloadMemory::kGpu), PayloadMemory::kGpu);
}

// --- strangers

TEST_F(NcclHandoff, SurvivesStrangers) {
  auto a = Make(), b = Make();
  const uint16_t port = AddressOf(b->peer.transport()).port;
  const uint64_t self = AddressOf(b->peer.transport()).incarnation;
  for (const std::string& bytes :
       {std::string("GET / HTTP/1.1\r\n\r\n"), std::string(100'000, 'x'), std::string(64, '\0')}) {
    Stranger stranger(port);
    stranger.Say(bytes);
    EXPECT_TRUE(stranger.AwaitEnd());
  }
  const HandoffMessage hello{.kind = HandoffKind::kHello, .number = self};
  OfferEntry entry;
  entry.header.payload_bytes = 1000;
  OfferEntry huge;
  huge.header.payload_bytes = UINT64_MAX;
  const std::vector<std::vector<HandoffMessage>> talks = {
      {{.kind = HandoffKind::kHello, .number = self + 1}},
      {{.kind = HandoffKind::kWelcome, .number = self}},
      {hello, hello},
      {hello, {.kind = HandoffKind::kGrant, .number = 1}},
      {hello, {.kind = HandoffKind::kPlaced, .number = 1}},
      {hello, {.kind = HandoffKind::kOpen, .address = 4096, .text = std::string(128, 'i')}},
      {hello, {.kind = HandoffKind::kOffer, .number = 1}},
      {hello, {.kind = HandoffKind::kOffer, .number = 2, .entries = {entry}}},
      {hello, {.kind = HandoffKind::kOffer, .number = 1, .entries = {huge}}},
      {hello, {.kind = HandoffKind::kOffer, .number = 1, .entries = {huge, huge, entry}}},
      {hello, {.kind = HandoffKind::kOpen, .number = 1, .text = "short"}},
      {hello, {.kind = HandoffKind::kNotify, .text = std::string(5000, 'n')}},
  };
  for (const auto& talk : talks) {
    Stranger stranger(port);
    for (const HandoffMessage& message : talk) Say(stranger, message);
    EXPECT_TRUE(stranger.AwaitEnd()) << static_cast<int>(talk.back().kind);
  }
  EXPECT_GE(b->counters().malformed_messages, 14u);
  const TransferId transfer = a->Prepare(*b);
  ASSERT_TRUE(a->Post(transfer, 1, 0, 1000).ok());
  EXPECT_TRUE(Poll({a.get(), b.get()}, [&] { return b->peer.Count(kReceived) == 1; }));
}

// One that begins as a sender does, and then stands still with a batch under way.
TEST_F(NcclHandoff, ASenderThatBreaksOffFreesItsStaging) {
  auto a = Make(), b = Make();
  KvTransport& inner = static_cast<StagedTransport&>(b->peer.transport()).inner();
  auto& nccl = static_cast<NcclTransport&>(inner);
  {
    Stranger stranger(AddressOf(b->peer.transport()).port);
    OfferEntry entry;
    entry.header.payload_bytes = 1000;
    Say(stranger,
        {.kind = HandoffKind::kHello, .number = AddressOf(b->peer.transport()).incarnation});
    // Nobody else has this id: its communicator never gets connected.
    Say(stranger, {.kind = HandoffKind::kOpen, .number = 1, .text = std::string(128, 'i')});
    Say(stranger, {.kind = HandoffKind::kOffer, .number = 1, .entries = {entry}});
    ASSERT_TRUE(Poll({b.get()}, [&] { return b->counters().communicators == 1; }));
  }
  const TransferId transfer = a->Prepare(*b);
  ASSERT_TRUE(a->Post(transfer, 1, 0, 1000).ok());
  ASSERT_TRUE(Poll({a.get(), b.get()}, [&] { return b->peer.Count(kReceived) == 1; }));
  EXPECT_TRUE(Poll({b.get()}, [&] { return nccl.staging_in_use_bytes() == 0; }));
}

TEST_F(NcclHandoff, MessagesRoundTripAndRefuseDamage) {
  HandoffMessage message{.kind = HandoffKind::kOffer, .number = 7, .address = 9, .text = "text"};
  message.place.endpoint = 5;
  message.entries.resize(3);
  message.entries[1].continues = true;
  message.entries[1].header.payload_bytes = 11;
  message.entries[2].header.payload_bytes = 13;
  const std::string good = EncodeHandoff(message);
  const HandoffMessage back = DecodeHandoff(good).value();
  EXPECT_EQ(back.number, 7u);
  EXPECT_EQ(back.place, message.place);
  EXPECT_EQ(back.text, "text");
  ASSERT_EQ(back.entries.size(), 3u);
  EXPECT_TRUE(back.entries[1].continues);
  EXPECT_EQ(PayloadBytes(back.entries), 24u);
  EXPECT_THAT(PieceBytes(back.entries), testing::ElementsAre(11, 13));
  for (size_t size = 0; size < good.size(); ++size) {
    EXPECT_FALSE(DecodeHandoff(good.substr(0, size)).ok()) << size;
  }
  EXPECT_FALSE(DecodeHandoff(good + "x").ok());
  Rng rng(5);
  for (int round = 0; round < 2000; ++round) {
    std::string bytes = good;
    for (int i = 0; i < 3; ++i) bytes[rng.Below(bytes.size())] = static_cast<char>(rng.Next());
    DecodeHandoff(bytes).status().IgnoreError();  // a message or an error, never a crash
  }
}

}  // namespace
}  // namespace baton::transport
