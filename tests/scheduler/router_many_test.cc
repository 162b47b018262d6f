// A router with many workers that come and go: who gets the next request, and what a change of the
// cluster costs the requests that run.

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/random.h"
#include "gtest/gtest.h"
#include "tests/scheduler/router_fixture.h"

namespace baton::scheduler {
namespace {

using RouterManyTest = RouterTest;

TEST_F(RouterManyTest, EqualsTakeTurns) {
  std::vector<RouterEvent> joins;
  for (uint32_t i = 0; i < 6; ++i) joins.push_back(Join(WorkerId(1 + i)));
  for (uint32_t i = 0; i < 3; ++i) {
    joins.push_back(
        PrefillJoined{WorkerId(50 + i), absl::StrCat("p", i), Identity("prefill"), Prefill()});
  }
  h.Step(joins);
  std::map<WorkerId, int> decode;
  std::map<std::string, int> prefill;
  for (uint64_t id = 1; id <= 12; ++id) {
    h.Step({Arrive(id)});
    const SendStart start = OnlyStart();
    ++decode[start.decode];
    ++prefill[start.request.prefill_address];
    h.Step({Update({}, {End(Key(id), EndKind::kFinished)}, {Key(id)}, start.decode)});
  }
  ASSERT_EQ(decode.size(), 6u);
  for (const auto& [worker, starts] : decode) EXPECT_EQ(starts, 2) << worker;
  ASSERT_EQ(prefill.size(), 3u);
  for (const auto& [address, starts] : prefill) EXPECT_EQ(starts, 4) << address;
}

// What a rank runs for other routers is seen in its status alone.
TEST_F(RouterManyTest, RequestsOfOtherRoutersCountAsLoad) {
  DecodeStatus busy = Decode();
  busy.running = 2;
  busy.landing = 1;
  h.Step({Join(kDecodeA, busy), Join(kDecodeB), Join(kPrefillA, Prefill(8))});
  std::vector<RouterEvent> arrivals;
  for (uint64_t id = 1; id <= 3; ++id) arrivals.push_back(Arrive(id));
  h.Step(arrivals);
  const auto starts = h.All<SendStart>();
  ASSERT_EQ(starts.size(), 3u);
  // By pages the ranks are equal before the first; from then on the emptier one is first.
  EXPECT_EQ(starts[0].decode, kDecodeB);
  EXPECT_EQ(starts[1].decode, kDecodeA);
  EXPECT_EQ(starts[2].decode, kDecodeB);
}

TEST_F(RouterManyTest, ALostRankTakesItsOwnRequestsAlone) {
  h.Step({Join(kDecodeA), Join(kDecodeB), Join(kPrefillA, Prefill(8))});
  h.Step({Arrive(1), Arrive(2)});
  const auto starts = h.All<SendStart>();
  ASSERT_EQ(starts.size(), 2u);
  ASSERT_NE(starts[0].decode, starts[1].decode);
  h.Step({DecodeLost{starts[0].decode, absl::UnavailableError("gone")}});
  const SendStart again = OnlyStart();
  EXPECT_EQ(again.request.key, (RequestKey{starts[0].request.key.request, 1}));
  EXPECT_EQ(again.decode, starts[1].decode);
  EXPECT_EQ(h.sink.report.decode_losses, 1u);
  EXPECT_EQ(h.sink.report.running, 2);
}

// A decode rank as its router sees it: it takes what it has credits for, gives each request a token
// a step, and leaves when it has drained.
struct Rank {
  uint64_t received = 0;
  bool draining = false;
  bool told = false;  // the router has heard that it drains
  int served = 0;
  std::map<RequestKey, StartRequest> running;

  DecodeUpdated Step(WorkerId id, Tick now, int32_t slots) {
    DecodeUpdated event{id, {}, now};
    for (auto it = running.begin(); it != running.end();) {
      StartRequest& start = it->second;
      const auto first = static_cast<int32_t>(start.delivered.size());
      TokenChunk chunk{it->first, first, {{it->first, 7, 0, {}}}, true, {}};
      start.delivered.push_back(7);
      event.update.chunks.push_back(std::move(chunk));
      if (first + 1 < start.sampling.max_tokens) {
        ++it;
        continue;
      }
      RequestEnd end;
      end.key = it->first;
      end.reason = FinishReason::kLength;
      event.update.ends.push_back(end);
      event.update.released.push_back(it->first);
      ++served;
      it = running.erase(it);
    }
    event.update.status = Status(slots);
    told = draining;
    return event;
  }

  DecodeStatus Status(int32_t slots) const {
    DecodeStatus status;
    const auto busy = static_cast<int32_t>(running.size());
    status.starts_received = received;
    status.credits_granted = received + static_cast<uint64_t>(draining ? 0 : slots - busy);
    status.total_pages = 100;
    status.free_pages = 100 - 5 * busy;
    status.running = busy;
    status.draining = draining;
    return status;
  }
};

// Ranks and workers join under new numbers and leave by draining, as discovery lets them: no
// request fails or is started twice, nobody who drains gets new ones, everybody else gets some.
class ChurnRun {
 public:
  ChurnRun(uint64_t seed, int decode, int prefill)
      : decode_target_(decode), prefill_target_(prefill), rng_(seed), h_(Options()) {}

  void Run(int steps) {
    for (int step = 0; step < steps && !testing::Test::HasFailure(); ++step) {
      std::vector<RouterEvent> events;
      for (int i = 0; i < 1 + decode_target_ / 25; ++i) Churn(events);
      for (auto& [id, rank] : ranks_) {
        if (rng_.Chance(0.5)) events.push_back(rank.Step(id, h_.now, kSlots));
      }
      for (auto it = ranks_.begin(); it != ranks_.end();) {
        const auto here = it++;
        if (here->second.told && here->second.running.empty()) Leave(here, events);
      }
      const auto arrivals = rng_.Below(static_cast<uint64_t>(2 * decode_target_ / 10 + 2));
      for (uint64_t i = 0; i < arrivals; ++i) Arrive(events);
      h_.StepAfter(Duration::Micros(500), std::move(events));
      Check();
    }
    for (int i = 0; i < 400 && open_ > 0; ++i) {
      std::vector<RouterEvent> events;
      for (auto& [id, rank] : ranks_) events.push_back(rank.Step(id, h_.now, kSlots));
      h_.StepAfter(Duration::Micros(500), std::move(events));
      Check();
    }
    EXPECT_EQ(open_, 0);
    EXPECT_GT(left_, 10);
    EXPECT_GT(served_by_those_who_left_, 0);
  }

 private:
  static constexpr int32_t kSlots = 4;

  static RouterOptions Options() {
    RouterOptions options;
    options.max_queued = 100'000;
    options.reserve_output_tokens = 4;
    return options;
  }

  void Churn(std::vector<RouterEvent>& events) {
    if (static_cast<int>(ranks_.size()) < decode_target_ && rng_.Chance(0.5)) {
      const WorkerId id(next_worker_++);
      events.push_back(DecodeJoined{id, Identity("decode"), ranks_[id].Status(kSlots)});
    } else if (!ranks_.empty() && rng_.Chance(0.1)) {
      const auto it = std::next(ranks_.begin(), static_cast<ptrdiff_t>(rng_.Below(ranks_.size())));
      it->second.draining = true;
    }
    if (static_cast<int>(prefill_.size()) < prefill_target_ && rng_.Chance(0.5)) {
      const WorkerId id(next_worker_++);
      PrefillStatus status;
      status.total_pages = status.free_pages = 1000;
      status.slots = 1000;
      prefill_.insert(id);
      events.push_back(
          PrefillJoined{id, absl::StrCat("p", id.value()), Identity("prefill"), status});
    } else if (prefill_.size() > 1 && rng_.Chance(0.05)) {
      const WorkerId gone =
          *std::next(prefill_.begin(), static_cast<ptrdiff_t>(rng_.Below(prefill_.size())));
      prefill_.erase(gone);
      events.push_back(PrefillLost{gone, absl::UnavailableError("drained")});
    }
  }

  void Leave(std::map<WorkerId, Rank>::iterator it, std::vector<RouterEvent>& events) {
    events.push_back(DecodeLost{it->first, absl::UnavailableError("drained")});
    served_by_those_who_left_ += it->second.served;
    ++left_;
    ranks_.erase(it);
  }

  void Arrive(std::vector<RouterEvent>& events) {
    Arrived arrived;
    arrived.id = RequestId(next_request_++);
    arrived.prompt.assign(1 + rng_.Below(12), 1);
    arrived.sampling.max_tokens = 1 + static_cast<int32_t>(rng_.Below(8));
    arrived.arrived_at = h_.now;
    arrived.deadline = h_.now + Duration::Seconds(600);
    events.push_back(std::move(arrived));
    ++open_;
  }

  void Check() {
    for (const SendStart& start : h_.All<SendStart>()) {
      ASSERT_TRUE(ranks_.contains(start.decode));
      Rank& rank = ranks_[start.decode];
      EXPECT_FALSE(rank.told);
      EXPECT_LT(rank.running.size(), static_cast<size_t>(kSlots));
      EXPECT_EQ(start.request.key.attempt, 0u);
      ++rank.received;
      rank.running.emplace(start.request.key, start.request);
    }
    for (const RequestResult& result : h_.All<RequestResult>()) {
      EXPECT_TRUE(result.status.ok()) << result.status;
      --open_;
    }
    EXPECT_EQ(h_.sink.report.retries, 0u);
  }

  const int decode_target_;
  const int prefill_target_;
  Rng rng_;
  Harness<Router, RouterEvent, RouterActionSink> h_;
  std::map<WorkerId, Rank> ranks_;
  std::set<WorkerId> prefill_;
  uint32_t next_worker_ = 1;
  uint64_t next_request_ = 1;
  int open_ = 0;
  int left_ = 0;
  int served_by_those_who_left_ = 0;
};

class RouterChurnTest : public testing::TestWithParam<uint64_t> {};

TEST_P(RouterChurnTest, NobodyNoticesWorkersThatComeAndDrain) {
  ChurnRun(GetParam(), /*decode=*/12, /*prefill=*/4).Run(1500);
}

INSTANTIATE_TEST_SUITE_P(Seeds, RouterChurnTest, testing::Range<uint64_t>(1, 11));

TEST(RouterChurn, AlsoAmongHundreds) { ChurnRun(77, /*decode=*/320, /*prefill=*/64).Run(100); }

// Even loads whatever the sizes of the ranks: the emptiest is first, so none is left behind.
TEST(RouterSpread, KeepsTheSharesOfFreePagesTogether) {
  Rng rng(3);
  RouterOptions options;
  options.max_queued = 10'000;
  options.reserve_output_tokens = 1;
  Harness<Router, RouterEvent, RouterActionSink> h(options);
  std::vector<RouterEvent> events;
  std::map<WorkerId, int32_t> total, used;
  for (uint32_t i = 1; i <= 40; ++i) {
    DecodeStatus status;
    status.credits_granted = 1000;
    status.total_pages = status.free_pages = total[WorkerId(i)] = i % 2 == 0 ? 400 : 200;
    events.push_back(DecodeJoined{WorkerId(i), Identity("decode"), status});
  }
  PrefillStatus prefill;
  prefill.total_pages = prefill.free_pages = 100'000;
  prefill.slots = 100'000;
  events.push_back(PrefillJoined{WorkerId(100), "p", Identity("prefill"), prefill});
  h.Step(events);
  for (uint64_t id = 1; id <= 400; ++id) {
    Arrived arrived;
    arrived.id = RequestId(id);
    arrived.prompt.assign(1 + rng.Below(60), 1);
    arrived.sampling.max_tokens = 1;
    arrived.arrived_at = h.now;
    arrived.deadline = h.now + Duration::Seconds(600);
    h.Step({arrived});
    for (const SendStart& start : h.All<SendStart>()) {
      used[start.decode] += static_cast<int32_t>((start.request.prompt.size() + 3) / 4);
    }
  }
  double least = 1;
  double most = 0;
  for (const auto& [worker, pages] : total) {
    const double share = static_cast<double>(used[worker]) / pages;
    least = std::min(least, share);
    most = std::max(most, share);
  }
  EXPECT_GT(least, 0.2);
  EXPECT_LT(most - least, 15.0 / 200);  // the largest request on the smallest rank
}

}  // namespace
}  // namespace baton::scheduler
