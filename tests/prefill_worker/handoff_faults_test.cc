// HandoffSender -> FaultyTransport over the in-process transport -> LandingTable: whatever happens
// to the messages, a landing completes with exactly the sender's pages or not at all, and no other
// page is touched. 200 seeds; a failure names its seed.

#include <map>
#include <memory>
#include <set>
#include <vector>

#include "base/clock.h"
#include "decode_worker/landing.h"
#include "gtest/gtest.h"
#include "prefill_worker/handoff_sender.h"
#include "tests/sim/faulty_wires.h"
#include "tests/sim/stub_runner.h"
#include "transport/faulty/faulty_transport.h"
#include "transport/inproc/inproc_transport.h"

namespace baton::prefill_worker {
namespace {

constexpr uint64_t kSeeds = 200;
constexpr uint32_t kRequests = 4;
constexpr uint32_t kPagesEach = 3;
constexpr int32_t kTokens = sim::kPageTokens * 2 + 9;
constexpr int kRounds = 400;

using Bytes = std::vector<std::byte>;

RequestKey KeyOf(uint32_t request) { return {RequestId(request), 1}; }

// Scattered, and different on the two sides.
std::vector<PageId> SourcePages(uint32_t request) {
  return {PageId(request), PageId(request + 8), PageId(request + 4)};
}
std::vector<PageId> LandingPages(uint32_t request) {
  return {PageId(request * 3 + 2), PageId(request * 3), PageId(request * 3 + 1)};
}

// All layers of some pages.
Bytes ContentOf(sim::StubRunner& runner, const std::vector<PageId>& pages, int32_t tokens) {
  Bytes content;
  for (int32_t layer = 0; layer < sim::kLayers; ++layer) {
    Bytes part(static_cast<size_t>(tokens) * sizeof(uint64_t));
    runner.PackPages(layer, pages, tokens, part);
    content.insert(content.end(), part.begin(), part.end());
  }
  return content;
}

struct Totals {
  int completed = 0;
  int corrupted = 0;
  int failed = 0;
  transport::FaultCounts faults;
  decode_worker::LandingReport landing;
};

class Handoffs {
 public:
  explicit Handoffs(uint64_t seed)
      : prefill_runner_({.total_pages = 16, .fault_seed = seed}, nullptr),
        decode_runner_({.total_pages = 16, .fault_seed = seed + kSeeds}, nullptr),
        table_(decode_runner_),
        decode_(fabric_.NewEndpoint("decode", {.max_message_bytes = 512, .staging_bytes = 8192})) {
    constexpr double kRates[] = {0.01, 0.05, 0.2};
    const double rate = kRates[seed % 3];
    transport::FaultyOptions options;
    options.seed = seed;
    options.rates = {.drop = rate / 2,
                     .delay = rate,
                     .reorder = rate,
                     .duplicate = rate,
                     .corrupt_payload = rate,
                     .corrupt_header = rate,
                     .truncate = rate / 2,
                     .cut = rate / 20};
    auto faulty = std::make_unique<transport::FaultyTransport>(
        fabric_.NewEndpoint("prefill", {.max_message_bytes = 512, .staging_bytes = 8192}), options);
    faulty_ = faulty.get();
    auto sender = HandoffSender::Create({.staging_bytes = 1024, .max_message_bytes = 256}, clock_,
                                        prefill_runner_, std::move(faulty));
    BATON_CHECK_MSG(sender.ok(), sender.status().ToString());
    sender_ = std::move(*sender);
  }

  void Run(Totals* totals) {
    const std::vector<PageId> others = {PageId(12), PageId(13), PageId(14), PageId(15)};
    const Bytes untouched = ContentOf(decode_runner_, others, 4 * sim::kPageTokens);
    std::vector<scheduler::HandoffSlice> slices;
    for (uint32_t request = 0; request < kRequests; ++request) {
      table_.Open({KeyOf(request), Epoch(1000 + request), LandingPages(request), kTokens});
      scheduler::OpenHandoff open{KeyOf(request), {}};
      open.landing.epoch = Epoch(1000 + request);
      open.landing.transport_address = decode_->address();
      open.landing.pages.resize(kPagesEach);
      sender_->Open(open);
      slices.push_back({KeyOf(request), 0, SourcePages(request), kTokens, true});
    }
    sender_->BeginPass(std::move(slices));
    for (int32_t layer = 0; layer < sim::kLayers; ++layer) {
      sender_->OnLayerWritten(layer);
      Receive();
    }
    sender_->EndPass();
    for (int round = 0; round < kRounds && (Busy() || round < 3); ++round) {
      sender_->Progress();
      sender_->CheckInvariants();
      Receive();
    }
    EXPECT_FALSE(Busy());
    EXPECT_EQ(finished_.size(), kRequests);
    CheckLandings(totals);
    EXPECT_EQ(ContentOf(decode_runner_, others, 4 * sim::kPageTokens), untouched);
    sim::AddCounts(faulty_->counts(), &totals->faults);
  }

 private:
  bool Busy() const {
    return sender_->has_backlog() || sender_->has_posts_in_flight() || faulty_->held() > 0;
  }

  void Receive() {
    std::vector<transport::KvEvent> events;
    decode_->Poll(&events, 1000);
    std::vector<scheduler::DecodeEvent> decided;
    for (const transport::KvEvent& event : events) {
      if (event.kind != transport::KvEventKind::kReceived) continue;
      table_.Receive(Tick(), event.header, event.payload, &decided);
    }
    for (const scheduler::DecodeEvent& event : decided) {
      const auto* done = std::get_if<scheduler::LandingCompleted>(&event);
      const RequestKey key =
          done != nullptr ? done->key : std::get<scheduler::LandingCorrupted>(event).key;
      EXPECT_TRUE(decided_.emplace(key, done != nullptr).second) << "decided twice";
    }
    for (const scheduler::HandoffFinished& finished : sender_->TakeFinished()) {
      EXPECT_TRUE(finished_.emplace(finished.key, finished.status).second) << "finished twice";
    }
  }

  void CheckLandings(Totals* totals) {
    for (uint32_t request = 0; request < kRequests; ++request) {
      table_.Close(Epoch(1000 + request));
      totals->failed += finished_[KeyOf(request)].ok() ? 0 : 1;
      const auto it = decided_.find(KeyOf(request));
      if (it == decided_.end()) continue;
      ++(it->second ? totals->completed : totals->corrupted);
      if (!it->second) continue;
      EXPECT_EQ(ContentOf(decode_runner_, LandingPages(request), kTokens),
                ContentOf(prefill_runner_, SourcePages(request), kTokens));
    }
    const decode_worker::LandingReport report = table_.TakeReport();
    totals->landing.unknown_epoch += report.unknown_epoch;
    totals->landing.bad_header += report.bad_header;
    totals->landing.bad_checksum += report.bad_checksum;
    totals->landing.duplicate += report.duplicate;
  }

  ManualClock clock_;
  sim::StubRunner prefill_runner_, decode_runner_;
  decode_worker::LandingTable table_;
  transport::InprocFabric fabric_;
  std::unique_ptr<transport::KvTransport> decode_;
  std::unique_ptr<HandoffSender> sender_;
  transport::FaultyTransport* faulty_ = nullptr;  // the sender's
  std::map<RequestKey, bool> decided_;            // landing complete; false: corrupt
  std::map<RequestKey, absl::Status> finished_;
};

TEST(HandoffFaultsTest, LandingsHoldTheSendersPagesOrStayIncomplete) {
  Totals totals;
  for (uint64_t seed = 1; seed <= kSeeds && !testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    Handoffs(seed).Run(&totals);
  }
  constexpr int kHandoffs = static_cast<int>(kSeeds) * static_cast<int>(kRequests);
  EXPECT_GT(totals.completed, kHandoffs / 4);
  EXPECT_GT(totals.corrupted, kHandoffs / 20);
  EXPECT_LT(totals.completed + totals.corrupted, kHandoffs);  // some never get all their messages
  EXPECT_GT(totals.failed, 10);                               // transfers that were cut
  const transport::FaultCounts& faults = totals.faults;
  for (const uint64_t count :
       {faults.dropped, faults.delayed, faults.reordered, faults.duplicated,
        faults.corrupted_payload, faults.corrupted_header, faults.truncated, faults.cut}) {
    EXPECT_GT(count, 10u);
  }
  EXPECT_GT(totals.landing.unknown_epoch, 10u);
  EXPECT_GT(totals.landing.bad_header, 10u);
  EXPECT_GT(totals.landing.bad_checksum, 10u);
  EXPECT_GT(totals.landing.duplicate, 10u);
}

}  // namespace
}  // namespace baton::prefill_worker
