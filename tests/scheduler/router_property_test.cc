// Random event sequences against the router; see property_test.cc.

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/random.h"
#include "gtest/gtest.h"
#include "scheduler/router.h"
#include "tests/scheduler/describe.h"
#include "tests/scheduler/harness.h"

namespace baton::scheduler {
namespace {

constexpr int kSteps = 1500;

// The other side of the streams: what a rank was asked to do and what it may still say.
struct FakeRank {
  uint64_t granted = 0;
  uint64_t received = 0;
  std::map<RequestKey, StartRequest> running;
};

TokenId TokenAt(RequestId id, size_t index) {
  return static_cast<TokenId>((id.value() * 31 + index * 7) % 1000);
}

class RouterRun {
 public:
  explicit RouterRun(uint64_t seed) : rng(seed), h(Options()) { identity.page_tokens = 4; }

  std::string Run() {
    for (int step = 0; step < kSteps; ++step) {
      std::vector<RouterEvent> events;
      for (uint64_t i = rng.Below(4); i > 0; --i) AddEvent(events);
      h.StepAfter(Duration::Micros(static_cast<int64_t>(rng.Below(3000))), events);
      Log(h.sink, &log);
      Check();
    }
    h.StepAfter(Duration::Millis(500));  // every deadline passes
    for (const RequestResult& result : h.All<RequestResult>()) ++results[result.id];
    h.StepAfter(Duration::Millis(500));  // and every wait for a release
    for (const auto& [id, count] : results) EXPECT_EQ(count, 1) << id;
    EXPECT_EQ(h.sink.report.releasing, 0);
    return log;
  }

 private:
  static RouterOptions Options() {
    RouterOptions options;
    options.max_queued = 12;
    options.max_requeues = 6;
    options.reserve_output_tokens = 4;
    options.release_timeout = Duration::Millis(100);
    options.no_workers_timeout = Duration::Millis(200);
    return options;
  }

  // What the rank says next: a few tokens, an end, a release.
  DecodeUpdated Update(WorkerId id, FakeRank& rank) {
    DecodeUpdated event;
    event.worker = id;
    event.received_at = h.now;
    for (auto it = rank.running.begin(); it != rank.running.end();) {
      const auto here = it++;
      StartRequest& start = here->second;
      const size_t have = start.delivered.size();
      TokenChunk chunk;
      chunk.key = here->first;
      chunk.has_first_token_timings = true;
      // Sometimes a few known tokens are repeated.
      const size_t first = rng.Chance(0.1) ? have / 2 : have;
      const size_t end =
          std::min(have + rng.Below(3), static_cast<size_t>(start.sampling.max_tokens));
      chunk.first_index = static_cast<int32_t>(first);
      for (size_t i = first; i < end; ++i) {
        chunk.tokens.push_back({here->first, TokenAt(here->first.request, i), 0, {}});
        if (i >= have) start.delivered.push_back(chunk.tokens.back().token);
      }
      if (rng.Chance(0.7))
        event.update.chunks.push_back(chunk);
      else
        start.delivered.resize(have);
      const bool full = start.delivered.size() >= static_cast<size_t>(start.sampling.max_tokens);
      if (!full && rng.Chance(0.9)) continue;
      RequestEnd over;
      over.key = here->first;
      over.kind = full ? EndKind::kFinished : static_cast<EndKind>(rng.Below(6));
      over.reason = FinishReason::kLength;
      over.prefill_lost = rng.Chance(0.3);
      if (over.kind == EndKind::kFailed) over.status = RandomStatus(rng);
      event.update.ends.push_back(over);
      if (rng.Chance(0.9)) event.update.released.push_back(here->first);
      rank.running.erase(here);
    }
    rank.granted = std::max(rank.granted, rank.received + rng.Below(4));
    event.update.status.credits_granted = rank.granted;
    event.update.status.starts_received = rank.received;
    event.update.status.total_pages = 40;
    event.update.status.free_pages = static_cast<int32_t>(rng.Below(41));
    event.update.status.draining = rng.Chance(0.05);
    event.update.status.caches_prefixes = true;
    event.update.status.cached_pages = static_cast<int32_t>(rng.Below(41));
    return event;
  }

  void AddEvent(std::vector<RouterEvent>& events) {
    const WorkerId rank(static_cast<uint32_t>(1 + rng.Below(3)));
    const WorkerId worker(static_cast<uint32_t>(11 + rng.Below(3)));
    switch (rng.Below(9)) {
      case 0:
      case 1:
        return AddArrival(events);
      case 2:
        events.push_back(ClientCancelled{RequestId(1 + rng.Below(next))});
        break;
      case 3:
        return JoinDecode(rank, events);
      case 4:
        if (rng.Chance(0.9)) break;
        ranks.erase(rank);
        events.push_back(DecodeLost{rank, absl::UnavailableError("r")});
        break;
      case 5:
        return ChangePrefill(worker, events);
      default:
        if (ranks.contains(rank)) events.push_back(Update(rank, ranks[rank]));
    }
  }

  void AddArrival(std::vector<RouterEvent>& events) {
    Arrived arrived;
    arrived.id = RequestId(next++);
    // Prompts that share prefixes and fork.
    for (uint64_t i = 1 + rng.Below(120); i > 0; --i) {
      arrived.prompt.push_back(rng.Chance(0.98) ? 1 : 2);
    }
    if (rng.Chance(0.1)) arrived.cache_salt = "tenant";
    arrived.sampling.max_tokens = 1 + static_cast<int32_t>(rng.Below(60));
    arrived.arrived_at = h.now;
    arrived.deadline = h.now + Duration::Millis(static_cast<int64_t>(1 + rng.Below(400)));
    results.emplace(arrived.id, 0);
    events.push_back(arrived);
  }

  void JoinDecode(WorkerId rank, std::vector<RouterEvent>& events) {
    if (ranks.contains(rank) && rng.Chance(0.9)) return;
    ranks[rank] = FakeRank{3, 0, {}};
    DecodeStatus status;
    status.credits_granted = 3;
    status.total_pages = 40;
    status.free_pages = 40;
    events.push_back(DecodeJoined{rank, identity, status});
  }

  void ChangePrefill(WorkerId worker, std::vector<RouterEvent>& events) {
    if (prefill.contains(worker) && rng.Chance(0.05)) {
      prefill.erase(worker);
      events.push_back(PrefillLost{worker, absl::UnavailableError("r")});
    } else {
      PrefillStatus status;
      status.total_pages = 40;
      status.free_pages = static_cast<int32_t>(rng.Below(41));
      status.slots = 3;
      status.caches_prefixes = rng.Chance(0.8);
      status.cached_pages = static_cast<int32_t>(rng.Below(41));
      if (prefill.insert(worker).second) {
        events.push_back(
            PrefillJoined{worker, absl::StrCat("p", worker.value()), identity, status});
      } else {
        events.push_back(PrefillUpdated{worker, status});
      }
    }
  }

  void Check() {
    for (const EmitTokens& emit : h.All<EmitTokens>()) {
      EXPECT_EQ(results[emit.id], 0);
      for (const SampledToken& token : emit.tokens) {
        EXPECT_EQ(token.token, TokenAt(emit.id, delivered[emit.id]++));
      }
    }
    for (const SendStart& start : h.All<SendStart>()) {
      FakeRank& rank = ranks.at(start.decode);  // never to one that is gone
      EXPECT_LT(rank.received, rank.granted);   // never without a credit
      ++rank.received;
      EXPECT_EQ(start.request.delivered.size(), delivered[start.request.key.request]);
      EXPECT_EQ(results[start.request.key.request], 0);
      rank.running.emplace(start.request.key, start.request);
    }
    for (const SendCancel& cancel : h.All<SendCancel>()) {
      const auto rank = ranks.find(cancel.decode);
      if (rank != ranks.end()) rank->second.running.erase(cancel.request.key);
    }
    for (const RequestResult& result : h.All<RequestResult>()) {
      EXPECT_EQ(++results[result.id], 1);
      EXPECT_EQ(result.status.ok(),
                result.reason == FinishReason::kStop || result.reason == FinishReason::kLength);
      EXPECT_EQ(result.output_tokens, static_cast<int32_t>(delivered[result.id]));
      if (result.has_first_token) {
        EXPECT_EQ(result.stages.Total(), result.ttft);
      }
    }
    EXPECT_EQ(h.sink.report.token_conflicts, 0u);
  }

  Rng rng;
  Harness<Router, RouterEvent, RouterActionSink> h;
  std::string log;
  std::map<WorkerId, FakeRank> ranks;
  std::set<WorkerId> prefill;
  std::map<RequestId, int> results;
  std::map<RequestId, size_t> delivered;
  uint64_t next = 1;
  WorkerIdentity identity;
};

class RouterPropertyTest : public testing::TestWithParam<uint64_t> {};

TEST_P(RouterPropertyTest, PromisesHoldAndDecisionsRepeat) {
  EXPECT_EQ(RouterRun(GetParam()).Run(), RouterRun(GetParam()).Run());
}

INSTANTIATE_TEST_SUITE_P(Seeds, RouterPropertyTest, testing::Range<uint64_t>(1, 21));

}  // namespace
}  // namespace baton::scheduler
