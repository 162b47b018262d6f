// The prefix cache as the prefill planner uses it: what is computed, shipped, kept and given up.

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "scheduler/prefill_planner.h"
#include "tests/scheduler/harness.h"

namespace baton::scheduler {
namespace {

PrefillPlannerOptions SmallOptions() {
  PrefillPlannerOptions options;
  options.page_tokens = 4;
  options.total_pages = 8;
  options.max_positions = 100;
  options.slots = 3;
  options.chunk_tokens = 100;
  return options;
}

class PrefillCacheTest : public testing::Test {
 protected:
  explicit PrefillCacheTest(const PrefillPlannerOptions& options = SmallOptions()) : h(options) {}

  static RequestKey Key(uint64_t request) { return {RequestId(request), 0}; }

  // A prompt of `tokens` tokens of the family `first`: those of one family begin alike.
  CallReceived Call(uint64_t request, int tokens, TokenId first = 1, int32_t first_page = 0) {
    CallReceived event;
    event.caller = CallerId(7);
    event.call.key = Key(request);
    for (int i = 0; i < tokens; ++i) event.call.prompt.push_back(first * 1000 + i);
    event.call.remaining = Duration::Seconds(10);
    event.call.landing.epoch = Epoch(request);
    event.call.landing.first_page = first_page;
    event.call.landing.pages.resize(static_cast<size_t>(PagesFor(tokens, 4) - first_page));
    event.received_at = h.now;
    return event;
  }

  RunPrefillPass LastPass() { return h.All<RunPrefillPass>().at(0); }

  PassFinished Pass() {
    PassFinished finished;
    for (const SequenceSlice& slice : LastPass().plan.slices) {
      if (slice.sample) finished.output.tokens.push_back({slice.key, 42, 0, {}});
    }
    finished.finished_at = h.now;
    return finished;
  }
  HandoffFinished Shipped(uint64_t request) { return {Key(request), absl::OkStatus(), 1, 10}; }

  // From call to reply.
  PrefillReply Run(const CallReceived& call) {
    h.Step({call});
    PrefillEvent pass = Pass();
    h.Step({std::move(pass), HandoffFinished{call.call.key, absl::OkStatus(), 1, 10}});
    return h.All<SendReply>().at(0).reply;
  }

  Harness<PrefillPlanner, PrefillEvent, PrefillActionSink> h;
};

TEST_F(PrefillCacheTest, ASecondPromptComputesOnlyWhatIsNew) {
  EXPECT_EQ(Run(Call(1, 10)).cached_tokens, 0);
  EXPECT_EQ(h.sink.report.cached_pages, 2);  // the third is not full
  EXPECT_EQ(h.sink.report.free_pages, 8);
  h.Step({Call(2, 14)});
  const SequenceSlice slice = LastPass().plan.slices.at(0);
  EXPECT_EQ(slice.first_position, 8);
  EXPECT_EQ(slice.row_count, 6);
  EXPECT_TRUE(slice.sample);
  EXPECT_EQ(h.sink.report.lookup_tokens, 14u);
  EXPECT_EQ(h.sink.report.hit_tokens, 8u);
  EXPECT_EQ(h.sink.report.queued_tokens, 6);
  h.Step({Pass(), Shipped(2)});
  EXPECT_EQ(h.All<SendReply>().at(0).reply.cached_tokens, 8);
}

TEST_F(PrefillCacheTest, CachedPagesShipWithTheFirstPass) {
  Run(Call(1, 10));
  h.Step({Call(2, 14)});
  ASSERT_EQ(LastPass().handoffs.size(), 1u);
  const HandoffSlice handoff = LastPass().handoffs[0];
  EXPECT_EQ(handoff.first_page, 0u);
  EXPECT_EQ(handoff.pages.size(), 4u);
  EXPECT_TRUE(std::equal(handoff.pages.begin(), handoff.pages.end(),
                         LastPass().plan.slices[0].pages.begin()));
  EXPECT_EQ(handoff.token_count, 14u);
  EXPECT_TRUE(handoff.last);
}

TEST_F(PrefillCacheTest, PagesThatDecodeHasAreNotShipped) {
  h.Step({Call(1, 14, 1, 2)});
  const HandoffSlice handoff = LastPass().handoffs.at(0);
  EXPECT_EQ(LastPass().plan.slices[0].row_count, 14);  // computed all the same
  EXPECT_EQ(handoff.first_page, 0u);                   // of the landing
  EXPECT_EQ(handoff.pages.size(), 2u);
  EXPECT_EQ(handoff.pages[0], LastPass().plan.slices[0].pages[2]);
  EXPECT_EQ(handoff.token_count, 6u);
  EXPECT_TRUE(handoff.last);
}

TEST_F(PrefillCacheTest, ALandingMustCoverTheRestOfThePrompt) {
  for (const int32_t first : {-1, 4, 5}) {
    CallReceived call = Call(static_cast<uint64_t>(10 + first), 14);
    call.call.landing.first_page = first;
    h.Step({call});
    EXPECT_EQ(h.All<SendReply>().at(0).reply.status.code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(PrefillCacheTest, TheLastTokenIsAlwaysComputed) {
  Run(Call(1, 8));
  EXPECT_EQ(h.sink.report.cached_pages, 2);
  h.Step({Call(2, 8)});
  EXPECT_EQ(LastPass().plan.slices.at(0).first_position, 4);
  h.Step({Pass(), Shipped(2)});
  EXPECT_TRUE(h.All<SendReply>().at(0).reply.has_first_token);
}

class PrefillCacheChunksTest : public PrefillCacheTest {
 protected:
  PrefillCacheChunksTest() : PrefillCacheTest(Options()) {}
  static PrefillPlannerOptions Options() {
    PrefillPlannerOptions options = SmallOptions();
    options.chunk_tokens = 8;
    return options;
  }
};

TEST_F(PrefillCacheChunksTest, ACallUsesWhatAnEarlierOneComputedWhileItWaited) {
  h.Step({Call(1, 10), Call(2, 10)});
  EXPECT_EQ(LastPass().plan.slices.size(), 1u);
  h.Step({Pass()});  // pages 0 and 1 stand; the second call's turn
  ASSERT_EQ(LastPass().plan.slices.size(), 2u);
  EXPECT_EQ(LastPass().plan.slices[1].first_position, 8);
  EXPECT_EQ(LastPass().plan.slices[1].row_count, 2);
  EXPECT_EQ(LastPass().plan.slices[1].pages[0], LastPass().plan.slices[0].pages[0]);
  EXPECT_EQ(LastPass().handoffs[1].pages.size(), 3u);
  EXPECT_EQ(h.sink.report.hit_tokens, 8u);
  EXPECT_EQ(h.sink.report.free_pages, 4);
  h.Step({Pass(), Shipped(1), Shipped(2)});
  EXPECT_EQ(h.sink.report.free_pages, 8);
}

TEST_F(PrefillCacheTest, TwoCallsOfOnePassKeepTheirPagesUntilTheyShipped) {
  h.Step({Call(1, 9), Call(2, 9)});
  EXPECT_EQ(LastPass().plan.slices.size(), 2u);
  h.Step({Pass()});
  EXPECT_EQ(h.sink.report.cached_pages, 2);
  EXPECT_EQ(h.sink.report.free_pages, 2);
  h.Step({Shipped(1)});
  h.Step({Shipped(2)});
  EXPECT_EQ(h.sink.report.free_pages, 8);
  EXPECT_EQ(h.sink.report.cached_pages, 2);
}

TEST_F(PrefillCacheTest, CachedPagesGiveWayInsteadOfRefusingACall) {
  Run(Call(1, 16, 1));
  Run(Call(2, 12, 2));
  EXPECT_EQ(h.sink.report.cached_pages, 7);
  h.Step({Call(3, 20, 3)});  // five pages: one is free, four of the first prompt go
  EXPECT_TRUE(h.All<SendReply>().empty());
  EXPECT_EQ(h.sink.report.evicted_pages, 4u);
  EXPECT_EQ(h.sink.report.free_pages, 3);
  h.Step({Pass(), Shipped(3)});
  h.Step({Call(4, 12, 2)});  // the younger one is still there
  EXPECT_EQ(h.sink.report.hit_tokens, 8u);
}

TEST_F(PrefillCacheTest, PagesInUseDoNotGiveWay) {
  Run(Call(1, 16, 1));
  h.Step({Call(2, 17, 1), Call(3, 16, 3)});  // five pages, four of them cached; four more
  EXPECT_EQ(h.All<SendReply>().at(0).reply.key, Key(3));
  EXPECT_EQ(h.All<SendReply>()[0].reply.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(h.sink.report.cached_pages, 4);
}

TEST_F(PrefillCacheTest, SaltsShareNothing) {
  CallReceived salted = Call(1, 10);
  salted.call.cache_salt = "tenant";
  Run(salted);
  EXPECT_EQ(Run(Call(2, 10)).cached_tokens, 0);
  salted.call.key = Key(3);
  EXPECT_EQ(Run(salted).cached_tokens, 8);
}

TEST_F(PrefillCacheTest, WhatAFailedPassWroteIsNotKept) {
  h.Step({Call(1, 10)});
  PassFinished failed;
  failed.status = absl::InternalError("boom");
  failed.finished_at = h.now;
  h.Step({failed});
  EXPECT_EQ(h.sink.report.cached_pages, 0);
  EXPECT_EQ(h.sink.report.free_pages, 8);
}

TEST_F(PrefillCacheTest, ACancelledCallLeavesWhatItComputed) {
  h.Step({Call(1, 10)});
  h.Step({Pass(), CallCancelled{CallerId(7), Key(1)}});
  EXPECT_EQ(h.sink.report.cached_pages, 2);
  EXPECT_EQ(h.sink.report.free_pages, 8);
}

TEST_F(PrefillCacheTest, StatusTellsWhatIsCached) {
  h.Step();
  EXPECT_TRUE(h.All<PublishStatus>().at(0).status.caches_prefixes);
  h.Step({Call(1, 10)});
  h.Step({Pass()});
  EXPECT_EQ(h.All<PublishStatus>().at(0).status.cached_pages, 2);
}

}  // namespace
}  // namespace baton::scheduler
