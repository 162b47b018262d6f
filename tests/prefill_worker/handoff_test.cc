// StagingRing, and HandoffSender over the in-process transport.

#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/metrics.h"
#include "base/random.h"
#include "gtest/gtest.h"
#include "prefill_worker/handoff_sender.h"
#include "prefill_worker/staging_ring.h"
#include "tests/sim/stub_runner.h"
#include "transport/inproc/inproc_transport.h"

namespace baton::prefill_worker {
namespace {

TEST(StagingRingTest, BlocksNeverOverlapAndEmptyRingsTakeAnything) {
  StagingRing ring(
      std::shared_ptr<std::byte>(new std::byte[1000](), std::default_delete<std::byte[]>()), 1000);
  Rng rng(5);
  struct Held {
    uint64_t id;
    std::span<std::byte> block;
  };
  std::vector<Held> held;
  uint64_t id = 1;
  int taken = 0;
  for (int i = 0; i < 20'000; ++i) {
    if (!held.empty() && rng.Chance(0.5)) {
      const size_t at = rng.Below(held.size());
      // What was written is still there.
      for (const std::byte b : held[at].block) {
        ASSERT_EQ(b, static_cast<std::byte>(held[at].id & 0xFF));
      }
      ring.GiveBack(held[at].id);
      held.erase(held.begin() + static_cast<ptrdiff_t>(at));
      continue;
    }
    const size_t bytes = 1 + rng.Below(held.empty() ? 1000 : 300);
    const std::span<std::byte> block = ring.Take(bytes, id);
    if (block.empty()) {
      ASSERT_FALSE(held.empty());
      continue;
    }
    ASSERT_EQ(block.size(), bytes);
    std::fill(block.begin(), block.end(), static_cast<std::byte>(id & 0xFF));
    held.push_back({id++, block});
    ++taken;
  }
  EXPECT_EQ(ring.blocks_in_use(), held.size());
  EXPECT_GT(taken, 1000);
}

constexpr int32_t kTokens = sim::kPageTokens * 3 + 2;  // four pages

class HandoffSenderTest : public testing::Test {
 protected:
  HandoffSenderTest()
      : runner_({.total_pages = 16}, nullptr), decode_(fabric_.NewEndpoint("decode")) {}

  void Create(HandoffSenderOptions options) {
    auto sender = HandoffSender::Create(options, clock_, runner_, fabric_.NewEndpoint("prefill"));
    ASSERT_TRUE(sender.ok()) << sender.status();
    sender_ = std::move(*sender);
  }

  RequestKey Open(uint64_t request) {
    const RequestKey key{RequestId(request), 0};
    scheduler::OpenHandoff open{key, {}};
    open.landing.epoch = Epoch(request + 100);
    open.landing.transport_address = decode_->address();
    open.landing.pages.resize(4);
    sender_->Open(open);
    return key;
  }

  scheduler::HandoffSlice Slice(RequestKey key) {
    scheduler::HandoffSlice slice;
    slice.key = key;
    slice.pages = {PageId(3), PageId(5), PageId(0), PageId(9)};
    slice.token_count = kTokens;
    slice.last = true;
    return slice;
  }

  void Pass(std::vector<scheduler::HandoffSlice> slices) {
    sender_->BeginPass(std::move(slices));
    for (int32_t layer = 0; layer < sim::kLayers; ++layer) {
      sender_->OnLayerWritten(layer);
      sender_->CheckInvariants();
    }
    sender_->EndPass();
  }

  // What has arrived at decode since the last time.
  std::vector<transport::KvMessageHeader> Arrived() {
    std::vector<transport::KvEvent> events;
    decode_->Poll(&events, 1000);
    std::vector<transport::KvMessageHeader> headers;
    for (const auto& event : events) {
      if (event.kind == transport::KvEventKind::kReceived) headers.push_back(event.header);
    }
    return headers;
  }

  ManualClock clock_;
  sim::StubRunner runner_;
  transport::InprocFabric fabric_;
  std::unique_ptr<transport::KvTransport> decode_;
  std::unique_ptr<HandoffSender> sender_;
};

TEST_F(HandoffSenderTest, EveryPageOfEveryLayerIsSentOnce) {
  HandoffSenderOptions options;
  options.max_message_bytes = sizeof(uint64_t) * sim::kPageTokens * 3;  // three pages
  Create(options);
  Pass({Slice(Open(1))});
  const auto finished = sender_->TakeFinished();
  ASSERT_EQ(finished.size(), 1u);
  EXPECT_TRUE(finished[0].status.ok());
  EXPECT_EQ(finished[0].messages_posted, 2u * sim::kLayers);
  EXPECT_EQ(finished[0].bytes_posted, sizeof(uint64_t) * kTokens * sim::kLayers);
  std::set<std::pair<uint32_t, uint32_t>> pages;
  for (const auto& header : Arrived()) {
    EXPECT_EQ(header.epoch, 101u);
    for (uint32_t p = 0; p < header.page_count; ++p) {
      EXPECT_TRUE(pages.insert({header.layer, header.first_page + p}).second);
    }
  }
  EXPECT_EQ(pages.size(), 4u * sim::kLayers);
}

TEST_F(HandoffSenderTest, FullRingMakesABacklogThatIsWorkedOff) {
  HandoffSenderOptions options;
  options.staging_bytes = sizeof(uint64_t) * sim::kPageTokens;  // one page
  Create(options);
  Pass({Slice(Open(1))});
  size_t arrived = Arrived().size();
  for (int round = 0; round < 100 && sender_->has_backlog(); ++round) {
    sender_->Progress();
    sender_->CheckInvariants();
    arrived += Arrived().size();
  }
  EXPECT_FALSE(sender_->has_backlog());
  EXPECT_EQ(arrived, 4u * sim::kLayers);
  ASSERT_EQ(sender_->TakeFinished().size(), 1u);
}

TEST_F(HandoffSenderTest, AbortedCallSendsNothingMore) {
  HandoffSenderOptions options;
  options.staging_bytes = sizeof(uint64_t) * sim::kPageTokens;
  Create(options);
  const RequestKey key = Open(1);
  Pass({Slice(key)});
  ASSERT_TRUE(sender_->has_backlog());
  sender_->Abort(key);
  sender_->CheckInvariants();
  EXPECT_FALSE(sender_->has_backlog());
  EXPECT_TRUE(sender_->TakeFinished().empty());
}

TEST_F(HandoffSenderTest, LostPeerFailsItsCallsAndTheNextOneConnectsAnew) {
  HandoffSenderOptions options;
  options.staging_bytes = sizeof(uint64_t) * sim::kPageTokens;
  Create(options);
  const RequestKey key = Open(1);
  Pass({Slice(key)});
  ASSERT_TRUE(sender_->has_backlog());
  decode_ = fabric_.NewEndpoint("decode");  // the old one is gone
  for (int round = 0; round < 10; ++round) sender_->Progress();
  const auto finished = sender_->TakeFinished();
  ASSERT_EQ(finished.size(), 1u);
  EXPECT_EQ(finished[0].key, key);
  EXPECT_FALSE(finished[0].status.ok());
  sender_->CheckInvariants();
  EXPECT_FALSE(sender_->has_posts_in_flight());

  Pass({Slice(Open(2))});
  for (int round = 0; round < 100 && sender_->has_backlog(); ++round) {
    sender_->Progress();
    Arrived();
  }
  ASSERT_EQ(sender_->TakeFinished().size(), 1u);
}

TEST_F(HandoffSenderTest, AddressOfAnotherTransportFailsTheCall) {
  Create({});
  scheduler::OpenHandoff open{{RequestId(1), 0}, {}};
  open.landing.transport_address = "carrier pigeon";
  sender_->Open(open);
  ASSERT_TRUE(sender_->has_finished());
  EXPECT_EQ(sender_->TakeFinished()[0].status.code(), absl::StatusCode::kInvalidArgument);
  sender_->CheckInvariants();
}

TEST_F(HandoffSenderTest, PageThatFitsNoMessageIsRefusedAtTheStart) {
  HandoffSenderOptions options;
  options.max_message_bytes = 8;
  const auto sender =
      HandoffSender::Create(options, clock_, runner_, fabric_.NewEndpoint("prefill"));
  EXPECT_EQ(sender.status().code(), absl::StatusCode::kInvalidArgument);
}

// An endpoint that has not sent anything yet when it goes, and reads it all once more then.
class SlowTransport final : public transport::KvTransport {
 public:
  // What is seen at the end.
  struct Seen {
    int payloads = 0;
    int damaged = 0;
    bool unregistered = false;
  };
  explicit SlowTransport(Seen* seen) : seen_(seen) {}
  ~SlowTransport() override {
    for (const auto& [payload, copy] : posts_) {
      ++seen_->payloads;
      seen_->damaged += std::equal(copy.begin(), copy.end(), payload.begin()) ? 0 : 1;
    }
  }
  transport::Capabilities capabilities() const override {
    return {.name = "slow", .max_message_bytes = 1 << 20, .max_posts_in_flight = 64};
  }
  std::string address() const override { return "slow"; }
  absl::StatusOr<transport::RegionId> Register(std::span<std::byte>) override {
    return transport::RegionId(1);
  }
  void Unregister(transport::RegionId) override { seen_->unregistered = true; }
  absl::StatusOr<transport::TransferId> Prepare(const std::string&) override {
    return transport::TransferId(1);
  }
  absl::Status Post(transport::TransferId, uint64_t, const transport::KvMessageHeader&,
                    std::span<const std::byte> payload) override {
    posts_.emplace_back(payload, std::vector<std::byte>(payload.begin(), payload.end()));
    return absl::OkStatus();
  }
  void Poll(std::vector<transport::KvEvent>*, int) override {}
  void Release(transport::TransferId) override {}
  absl::Status Notify(transport::TransferId, std::span<const std::byte>) override {
    return absl::UnimplementedError("");
  }
  void SetWakeup(std::function<void()>) override {}

 private:
  Seen* const seen_;
  std::vector<std::pair<std::span<const std::byte>, std::vector<std::byte>>> posts_;
};

TEST_F(HandoffSenderTest, MetricsTellWhatWasPostedHowLongItTookAndWhatFailed) {
  Metrics metrics({});
  HandoffSenderOptions options;
  options.metrics = metrics.prefill_follower().handoff;
  Create(options);
  const RequestKey key = Open(1);
  sender_->BeginPass({Slice(key)});
  for (int32_t layer = 0; layer < sim::kLayers; ++layer) {
    clock_.Advance(Duration::Millis(250));
    sender_->OnLayerWritten(layer);
  }
  sender_->EndPass();
  ASSERT_EQ(sender_->TakeFinished().size(), 1u);
  Open(2);
  decode_.reset();
  sender_->Progress();
  ASSERT_EQ(sender_->TakeFinished().size(), 1u);
  scheduler::OpenHandoff nowhere{{RequestId(3), 0}, {}};
  nowhere.landing.transport_address = "carrier pigeon";
  sender_->Open(nowhere);
  const std::string text = metrics.Render();
  const auto shows = [&text](const std::string& name, double value) {
    std::ostringstream line;
    line << name << " " << value << "\n";
    return text.find(line.str()) != std::string::npos;
  };
  EXPECT_TRUE(shows("baton_handoff_sent_messages_total", sim::kLayers)) << text;
  EXPECT_TRUE(shows("baton_handoff_sent_bytes_total", 8.0 * kTokens * sim::kLayers)) << text;
  EXPECT_TRUE(shows("baton_handoff_send_seconds_sum", 0.25 * (sim::kLayers - 1))) << text;
  EXPECT_TRUE(shows("baton_handoff_send_seconds_count", 1)) << text;
  EXPECT_TRUE(shows("baton_handoff_send_failures_total", 2)) << text;
}

// AddressSanitizer sees it too when the memory goes first.
TEST_F(HandoffSenderTest, MemoryOutlivesTheTransportThatReadsIt) {
  SlowTransport::Seen seen;
  auto sender = HandoffSender::Create({}, clock_, runner_, std::make_unique<SlowTransport>(&seen));
  ASSERT_TRUE(sender.ok()) << sender.status();
  sender_ = std::move(*sender);
  Pass({Slice(Open(1)), Slice(Open(2))});
  EXPECT_TRUE(sender_->has_posts_in_flight());
  sender_.reset();  // waits for nothing
  EXPECT_EQ(seen.payloads, 2 * sim::kLayers);
  EXPECT_EQ(seen.damaged, 0);
  EXPECT_FALSE(seen.unregistered);  // no post may be in flight then
}

}  // namespace
}  // namespace baton::prefill_worker
