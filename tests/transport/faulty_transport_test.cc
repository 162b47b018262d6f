#include "transport/faulty/faulty_transport.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "tests/transport/test_peer.h"
#include "transport/inproc/inproc_transport.h"

namespace baton::transport {
namespace {

using enum KvEventKind;

constexpr size_t kBytes = 500;

// A faulty sender and a receiver in one process and thread.
struct Line {
  explicit Line(const FaultyOptions& options)
      : a(std::make_unique<FaultyTransport>(fabric.NewEndpoint("a"), options), &bell),
        b(fabric.NewEndpoint("b"), &bell),
        memory(&a.transport(), kBytes, 1) {
    transfer = a.transport().Prepare(b.transport().address()).value();
  }
  FaultyTransport& faulty() { return static_cast<FaultyTransport&>(a.transport()); }
  absl::Status Post(uint64_t id) {
    return a.transport().Post(transfer, id, TestHeader(id, memory.bytes()), memory.bytes());
  }
  // Posts `count` messages, polling both sides now and then.
  void Run(uint64_t count) {
    for (uint64_t id = 0; id < count; ++id) {
      ASSERT_TRUE(Post(id).ok()) << id;
      if (id % 3 == 0) Poll();
    }
    for (int i = 0; i < 200; ++i) Poll();
  }
  void Poll() {
    a.Poll(64);
    b.Poll(64);
  }
  std::vector<uint64_t> Arrived() const {
    std::vector<uint64_t> ids;
    for (const SeenEvent& event : b.Seen(kReceived)) ids.push_back(event.header.request);
    return ids;
  }

  Bell bell;
  InprocFabric fabric;
  TestPeer a;
  TestPeer b;
  TestMemory memory;
  TransferId transfer;
};

FaultyOptions With(double FaultRates::*rate, double chance, uint64_t seed = 7) {
  FaultyOptions options{.seed = seed};
  options.rates.*rate = chance;
  return options;
}

bool IsSorted(const std::vector<uint64_t>& ids) { return std::is_sorted(ids.begin(), ids.end()); }

TEST(FaultyTransport, DropsButSaysSent) {
  Line line(With(&FaultRates::drop, 0.3));
  line.Run(300);
  const FaultCounts& counts = line.faulty().counts();
  EXPECT_EQ(counts.messages, 300u);
  EXPECT_GT(counts.dropped, 50u);
  EXPECT_LT(counts.dropped, 130u);
  EXPECT_EQ(line.Arrived().size(), 300 - counts.dropped);
  EXPECT_EQ(line.a.Count(kSent), 300u);
}

TEST(FaultyTransport, DelaysWithAStableCopy) {
  Line line(With(&FaultRates::delay, 1.0));
  ASSERT_TRUE(line.Post(1).ok());
  const std::vector<std::byte> original(line.memory.bytes().begin(), line.memory.bytes().end());
  line.a.Poll(8);
  ASSERT_EQ(line.a.Count(kSent), 1u);
  std::fill(line.memory.bytes().begin(), line.memory.bytes().end(), std::byte{0});
  line.b.Poll();
  ASSERT_EQ(line.faulty().held(), 1u);
  EXPECT_TRUE(line.Arrived().empty());
  for (int i = 0; i < 20; ++i) line.Poll();
  ASSERT_EQ(line.Arrived().size(), 1u);
  EXPECT_EQ(line.b.Seen(kReceived)[0].payload, original);
  EXPECT_EQ(line.faulty().counts().delayed, 1u);
}

TEST(FaultyTransport, DelaysByAClock) {
  auto clock = std::make_shared<ManualClock>();
  FaultyOptions options = With(&FaultRates::delay, 1.0);
  options.clock = clock;
  options.max_delay = Duration::Millis(5);
  Line line(options);
  EXPECT_TRUE(line.faulty().next_due().infinite());
  ASSERT_TRUE(line.Post(1).ok());
  for (int i = 0; i < 50; ++i) line.Poll();
  EXPECT_TRUE(line.Arrived().empty());
  const Tick due = line.faulty().next_due();
  EXPECT_LE(due - clock->Now(), Duration::Millis(5));
  clock->Set(due);
  line.Poll();
  EXPECT_EQ(line.Arrived().size(), 1u);
}

TEST(FaultyTransport, ReordersWithoutLoss) {
  Line line(With(&FaultRates::reorder, 0.3));
  line.Run(300);
  std::vector<uint64_t> ids = line.Arrived();
  EXPECT_FALSE(IsSorted(ids));
  std::sort(ids.begin(), ids.end());
  EXPECT_EQ(std::adjacent_find(ids.begin(), ids.end()), ids.end());
  EXPECT_EQ(ids.size(), 300u);
  EXPECT_GT(line.faulty().counts().reordered, 50u);
}

TEST(FaultyTransport, Duplicates) {
  Line line(With(&FaultRates::duplicate, 0.3));
  line.Run(300);
  std::map<uint64_t, int> times;
  for (const uint64_t id : line.Arrived()) ++times[id];
  uint64_t twice = 0;
  for (const auto& [id, count] : times) {
    EXPECT_LE(count, 2);
    twice += count == 2;
  }
  EXPECT_EQ(times.size(), 300u);
  EXPECT_EQ(twice, line.faulty().counts().duplicated);
  EXPECT_GT(twice, 50u);
  EXPECT_EQ(line.a.Count(kSent), 300u);
}

TEST(FaultyTransport, CorruptsPayloadsAndHeadersAndTruncates) {
  FaultyOptions options{.seed = 3};
  options.rates = {.corrupt_payload = 0.2, .corrupt_header = 0.2, .truncate = 0.2};
  Line line(options);
  line.Run(500);
  uint64_t bad_payloads = 0, bad_headers = 0, shorter = 0, good = 0;
  for (const SeenEvent& event : line.b.Seen(kReceived)) {
    ASSERT_EQ(event.header.payload_bytes, event.payload.size());
    KvMessageHeader expected = TestHeader(event.header.request, line.memory.bytes());
    const bool is_short = event.payload.size() < kBytes;
    if (is_short) expected.payload_bytes = event.payload.size();
    const bool bad_header = !SameHeader(event.header, expected);
    const bool bad_payload = !SameBytes(event.payload, line.memory.Part(0, event.payload.size()));
    bad_payloads += bad_payload;
    bad_headers += bad_header;
    shorter += is_short;
    good += !bad_payload && !bad_header && !is_short;
  }
  const FaultCounts& counts = line.faulty().counts();
  EXPECT_EQ(line.Arrived().size(), 500u);
  // A payload of no bytes has none to corrupt, so both counts agree with what came.
  EXPECT_EQ(bad_payloads, counts.corrupted_payload);
  EXPECT_EQ(bad_headers, counts.corrupted_header);
  EXPECT_EQ(shorter, counts.truncated);
  EXPECT_GT(std::min({bad_payloads, bad_headers, shorter}), 50u);
  EXPECT_GT(good, 200u);
}

TEST(FaultyTransport, CutsATransferAndKeepsTheContract) {
  Line line(With(&FaultRates::cut, 0.05));
  line.faulty().SetRates({.delay = 0.3, .cut = 0.05});
  uint64_t accepted = 0;
  while (line.Post(accepted).ok()) {
    ++accepted;
    ASSERT_LT(accepted, 250u);
  }
  EXPECT_EQ(line.Post(accepted).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(line.faulty().counts().cut, 1u);
  for (int i = 0; i < 50; ++i) line.Poll();
  EXPECT_EQ(line.a.Count(kPeerLost), 1u);
  EXPECT_EQ(line.a.Count(kReleased), 0u);
  EXPECT_EQ(line.a.seen.back().kind, kPeerLost);
  EXPECT_LT(line.a.Count(kSent), accepted);
  line.a.transport().Release(line.transfer);
  for (int i = 0; i < 5; ++i) line.Poll();
  EXPECT_EQ(line.a.Count(kReleased), 1u);
  EXPECT_EQ(line.a.seen.back().kind, kReleased);

  // The endpoint goes on, with all its slots.
  line.faulty().SetRates({});
  line.transfer = line.a.transport().Prepare(line.b.transport().address()).value();
  const size_t before = line.Arrived().size();
  line.Run(200);
  EXPECT_EQ(line.Arrived().size(), before + 200);
}

TEST(FaultyTransport, ReleaseWaitsForWhatIsHeld) {
  Line line(With(&FaultRates::delay, 1.0));
  for (uint64_t id = 0; id < 20; ++id) ASSERT_TRUE(line.Post(id).ok());
  line.a.transport().Release(line.transfer);
  for (int i = 0; i < 100 && line.a.Count(kReleased) == 0; ++i) {
    line.a.Poll(64);
    if (line.a.Count(kReleased) == 0) continue;
    line.b.Poll(64);
    EXPECT_EQ(line.Arrived().size(), 20u);
  }
  EXPECT_EQ(line.a.Count(kReleased), 1u);
  EXPECT_EQ(line.a.seen.back().kind, kReleased);
}

TEST(FaultyTransport, LosesHeldMessagesWithThePeer) {
  Line line(With(&FaultRates::delay, 0.5));
  for (uint64_t id = 0; id < 50; ++id) ASSERT_TRUE(line.Post(id).ok());
  line.a.transport().Release(line.transfer);
  line.b.Destroy();
  for (int i = 0; i < 50; ++i) line.a.Poll(64);
  EXPECT_EQ(line.a.Count(kPeerLost), 1u);
  EXPECT_EQ(line.a.Count(kReleased), 1u);
  EXPECT_EQ(line.a.seen.back().kind, kReleased);
  EXPECT_EQ(line.faulty().held(), 0u);
}

TEST(FaultyTransport, SparesMessagesBeyondItsMemory) {
  FaultyOptions options = With(&FaultRates::delay, 1.0);
  options.max_copied_bytes = 3 * kBytes;
  Line line(options);
  for (uint64_t id = 0; id < 10; ++id) ASSERT_TRUE(line.Post(id).ok());
  EXPECT_EQ(line.faulty().held(), 3u);
  EXPECT_EQ(line.faulty().counts().spared, 7u);
  for (int i = 0; i < 20; ++i) line.Poll();
  EXPECT_EQ(line.Arrived().size(), 10u);
}

TEST(FaultyTransport, HarmsNotifiesToo) {
  FaultyOptions options{.seed = 5};
  options.rates = {.drop = 0.3, .duplicate = 0.3, .corrupt_payload = 0.3};
  Line line(options);
  const std::vector<std::byte> bytes(10);
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(line.a.transport().Notify(line.transfer, bytes).ok());
    line.Poll();
  }
  for (int i = 0; i < 20; ++i) line.Poll();
  const FaultCounts& counts = line.faulty().counts();
  const auto notified = line.b.Seen(kNotified);
  EXPECT_EQ(notified.size(), 100 - counts.dropped + counts.duplicated);
  EXPECT_EQ(std::count_if(notified.begin(), notified.end(),
                          [&](const SeenEvent& event) { return event.payload != bytes; }),
            static_cast<ptrdiff_t>(counts.corrupted_payload));
}

// What came, byte for byte, and what was counted.
struct Trace {
  std::vector<std::vector<std::byte>> received;
  FaultCounts counts;
  friend bool operator==(const Trace&, const Trace&) = default;
};

Trace RunAll(uint64_t seed) {
  FaultyOptions options{.seed = seed};
  options.rates = {.drop = 0.1,
                   .delay = 0.2,
                   .reorder = 0.1,
                   .duplicate = 0.1,
                   .corrupt_payload = 0.1,
                   .corrupt_header = 0.1,
                   .truncate = 0.1,
                   .cut = 0.002};
  Line line(options);
  for (uint64_t id = 0; id < 400; ++id) {
    if (!line.Post(id).ok()) {
      line.a.transport().Release(line.transfer);
      line.transfer = line.a.transport().Prepare(line.b.transport().address()).value();
    }
    if (id % 5 == 0) line.Poll();
  }
  for (int i = 0; i < 50; ++i) line.Poll();
  Trace trace;
  for (const SeenEvent& event : line.b.Seen(kReceived)) {
    const auto header = std::as_bytes(std::span(&event.header, 1));
    trace.received.emplace_back(header.begin(), header.end());
    trace.received.push_back(event.payload);
  }
  trace.counts = line.faulty().counts();
  // Every post is accounted for: sent, or lost with its transfer.
  EXPECT_EQ(line.faulty().held(), 0u);
  EXPECT_GE(line.a.Count(kSent) + line.a.Count(kPeerLost) * 400, trace.counts.messages);
  return trace;
}

TEST(FaultyTransport, SameSeedSameFaults) {
  const Trace first = RunAll(21);
  EXPECT_EQ(first, RunAll(21));
  EXPECT_NE(first, RunAll(22));
  const FaultCounts& counts = first.counts;
  EXPECT_GT(std::min({counts.dropped, counts.delayed, counts.reordered, counts.duplicated,
                      counts.corrupted_payload, counts.corrupted_header, counts.truncated}),
            5u);
}

}  // namespace
}  // namespace baton::transport
