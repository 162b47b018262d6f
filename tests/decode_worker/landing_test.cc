#include "decode_worker/landing.h"

#include <array>
#include <cstring>
#include <vector>

#include "gtest/gtest.h"
#include "scheduler/handoff.h"
#include "tests/sim/stub_runner.h"

namespace baton::decode_worker {
namespace {

using scheduler::DecodeEvent;
using scheduler::LandingCompleted;
using scheduler::LandingCorrupted;

constexpr int32_t kTokens = sim::kPageTokens * 2 + 5;  // three pages, the last partly filled
const RequestKey kKey{RequestId(77), 3};
constexpr Epoch kEpoch(500);

class LandingTest : public testing::Test {
 protected:
  LandingTest() : runner_({.total_pages = 8}, nullptr), table_(runner_) {
    table_.Open({kKey, kEpoch, {PageId(1), PageId(4), PageId(6)}, kTokens});
  }

  struct Message {
    transport::KvMessageHeader header;
    std::vector<std::byte> payload;
  };

  // Pages [first, first + count) of one layer, as a prefill worker would send them.
  Message Make(uint32_t layer, uint32_t first, uint32_t count) {
    Message m;
    const int32_t begin = static_cast<int32_t>(first) * sim::kPageTokens;
    const int32_t end = std::min(static_cast<int32_t>(first + count) * sim::kPageTokens, kTokens);
    m.header.request = kKey.request.value();
    m.header.attempt = kKey.attempt;
    m.header.epoch = kEpoch.value();
    m.header.layer = layer;
    m.header.first_page = first;
    m.header.page_count = count;
    m.header.token_count = static_cast<uint32_t>(end - begin);
    m.payload.resize(m.header.token_count * sizeof(uint64_t));
    m.header.payload_bytes = m.payload.size();
    const std::vector<PageId> source = {PageId(0), PageId(2), PageId(3)};
    const uint64_t sum =
        runner_.PackPages(static_cast<int32_t>(layer), std::span(source).subspan(first, count),
                          static_cast<int32_t>(m.header.token_count), m.payload);
    m.header.checksum =
        sum ^ scheduler::HandoffSeal({kKey, kEpoch, layer, first, count, m.header.token_count});
    return m;
  }

  void Receive(const Message& m) { table_.Receive(now_, m.header, m.payload, &events_); }

  sim::StubRunner runner_;
  LandingTable table_;
  Tick now_ = Tick::FromNanos(1000);
  std::vector<DecodeEvent> events_;
};

TEST_F(LandingTest, CompleteWhenEveryPageOfEveryLayerIsThere) {
  for (uint32_t layer = 0; layer < sim::kLayers; ++layer) {
    Receive(Make(layer, 2, 1));  // any order
    EXPECT_TRUE(events_.empty());
    now_ = now_ + Duration::Millis(1);
    Receive(Make(layer, 0, 2));
  }
  ASSERT_EQ(events_.size(), 1u);
  const auto& done = std::get<LandingCompleted>(events_[0]);
  EXPECT_EQ(done.key, kKey);
  EXPECT_EQ(done.epoch, kEpoch);
  EXPECT_EQ(done.messages, 2u * sim::kLayers);
  const LandingReport report = table_.TakeReport();
  EXPECT_EQ(report.messages, 2u * sim::kLayers);
  EXPECT_EQ(report.bytes, sizeof(uint64_t) * kTokens * sim::kLayers);
  ASSERT_EQ(report.handoffs.size(), 1u);
  EXPECT_EQ(report.handoffs[0], Duration::Millis(sim::kLayers));
}

TEST_F(LandingTest, OldEpochIsRefused) {
  Message m = Make(0, 0, 1);
  m.header.epoch -= 1;
  Receive(m);
  table_.Close(kEpoch);
  Receive(Make(0, 0, 1));
  EXPECT_EQ(table_.TakeReport().unknown_epoch, 2u);
  EXPECT_TRUE(events_.empty());
}

TEST_F(LandingTest, DuplicateIsIgnored) {
  Receive(Make(0, 0, 1));
  Receive(Make(0, 0, 1));
  Receive(Make(0, 0, 2));  // overlaps
  const LandingReport report = table_.TakeReport();
  EXPECT_EQ(report.messages, 1u);
  EXPECT_EQ(report.duplicate, 2u);
}

TEST_F(LandingTest, DamagedPayloadIsRefusedAndSaidOnce) {
  Message m = Make(1, 0, 2);
  m.payload[9] ^= std::byte{1};
  Receive(m);
  Receive(m);
  ASSERT_EQ(events_.size(), 1u);
  EXPECT_EQ(std::get<LandingCorrupted>(events_[0]).key, kKey);
  EXPECT_EQ(std::get<LandingCorrupted>(events_[0]).status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(table_.TakeReport().bad_checksum, 2u);
}

// No bit of a header can be flipped without the message being refused, whatever it then says.
TEST_F(LandingTest, EveryDamagedHeaderBitIsRefused) {
  for (size_t bit = 0; bit < sizeof(transport::KvMessageHeader) * 8; ++bit) {
    Message m = Make(1, 1, 2);
    std::array<std::byte, sizeof(m.header)> bytes;
    std::memcpy(bytes.data(), &m.header, bytes.size());
    bytes[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    std::memcpy(&m.header, bytes.data(), bytes.size());
    // Who sent it is for people only.
    if (m.header.source_rank != 0) continue;
    Receive(m);
    EXPECT_EQ(table_.TakeReport().messages, 0u) << "bit " << bit;
  }
}

TEST_F(LandingTest, HeaderOutOfBoundsIsRefused) {
  const auto refused = [this](auto change) {
    Message m = Make(0, 0, 3);
    change(m);
    Receive(m);
    EXPECT_EQ(table_.TakeReport().bad_header, 1u);
  };
  refused([](Message& m) { m.header.layer = sim::kLayers; });
  refused([](Message& m) { m.header.first_page = 0xFFFFFFFF; });
  refused([](Message& m) { m.header.page_count = 0; });
  refused([](Message& m) { m.header.page_count = 4; });
  refused([](Message& m) { m.header.token_count = kTokens + 1; });
  refused([](Message& m) { m.header.attempt = 2; });
  refused([](Message& m) { m.payload.resize(8); });
  refused([](Message& m) { m.header.payload_bytes = 8; });
}

}  // namespace
}  // namespace baton::decode_worker
