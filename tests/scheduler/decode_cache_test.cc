// Pages that finished sequences leave on a decode rank, and what later requests take of them.

#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/scheduler/decode_fixture.h"

namespace baton::scheduler {
namespace {

DecodePlannerOptions CachingOptions(bool reuse_generated = false) {
  DecodePlannerOptions options = SmallDecodeOptions();
  options.prefix_cache = true;
  options.reuse_generated = reuse_generated;
  return options;
}

class DecodeCacheTest : public DecodePlannerTest {
 protected:
  explicit DecodeCacheTest(const DecodePlannerOptions& options = CachingOptions())
      : DecodePlannerTest(options) {}

  // Prompts of one family begin alike.
  StartReceived Start(uint64_t request, int prompt, int max_tokens, TokenId first = 1) {
    StartReceived event = DecodePlannerTest::Start(request, 0, max_tokens);
    for (int i = 0; i < prompt; ++i) event.request.prompt.push_back(first * 1000 + i);
    return event;
  }

  // Runs a request to its end; the generated tokens are 7, then 6s.
  void Run(const StartReceived& start) {
    const uint64_t request = start.request.key.request.value();
    Step({start});
    Step({Reply(request), Landed(request)});
    while (!h.All<RunDecodePass>().empty()) Step({Pass()});
  }
};

TEST_F(DecodeCacheTest, ALaterPromptLandsOnlyItsMissingPages) {
  Run(Start(1, 10, 3));
  EXPECT_EQ(h.sink.report.free_pages, 10);
  EXPECT_EQ(h.sink.report.cached_pages, 2);  // of the prompt, full ones
  Step({Start(2, 15, 3)});
  const PrefillCall call = h.All<CallPrefill>().at(0).call;
  EXPECT_EQ(call.landing.first_page, 2);
  EXPECT_EQ(call.landing.pages.size(), 2u);
  EXPECT_EQ(call.prompt.size(), 15u);
  const OpenLanding open = h.All<OpenLanding>().at(0);
  EXPECT_EQ(open.pages, call.landing.pages);
  EXPECT_EQ(open.token_count, 7);
  EXPECT_EQ(h.sink.report.lookup_tokens, 15u);
  EXPECT_EQ(h.sink.report.hit_tokens, 8u);
  Step({Reply(2), Landed(2)});
  EXPECT_EQ(Plan().slices.at(0).first_position, 15);
  EXPECT_EQ(Plan().slices[0].pages.size(), 4u);
}

TEST_F(DecodeCacheTest, RunningSequencesShareThePagesOfTheirPrompts) {
  Step({Start(1, 10, 50)});
  Step({Reply(1), Landed(1)});
  const std::vector<PageId> first(Plan().slices[0].pages.begin(), Plan().slices[0].pages.end());
  Step({Pass(), Start(2, 10, 50)});
  EXPECT_EQ(h.All<CallPrefill>().at(0).call.landing.first_page, 2);
  EXPECT_EQ(h.sink.report.free_pages, 6);
  Step({Pass(), Reply(2), Landed(2)});
  ASSERT_EQ(Plan().slices.size(), 2u);
  EXPECT_EQ(Plan().slices[1].pages[1], first[1]);
  EXPECT_NE(Plan().slices[1].pages[2], first[2]);
}

TEST_F(DecodeCacheTest, PagesLandedTwiceAreGivenUp) {
  Step({Start(1, 9, 50), Start(2, 9, 50)});
  EXPECT_EQ(h.sink.report.free_pages, 4);
  Step({Reply(1), Landed(1), Reply(2), Landed(2)});
  EXPECT_EQ(h.sink.report.free_pages, 6);
  EXPECT_EQ(Plan().slices[0].pages[0], Plan().slices[1].pages[0]);
}

TEST_F(DecodeCacheTest, NothingIsKeptOfALandingThatDidNotComplete) {
  Step({Start(1, 10, 3)});
  Step({Reply(1)});
  Step({LandingCorrupted{Key(1), epochs.at(1), absl::DataLossError("x")}});
  EXPECT_EQ(h.sink.report.cached_pages, 0);
  EXPECT_EQ(h.sink.report.free_pages, 10);
}

TEST_F(DecodeCacheTest, CachedPagesDoNotCountAgainstAdmissionOrGrowth) {
  Run(Start(1, 16, 2, 1));
  Run(Start(2, 16, 2, 2));
  EXPECT_EQ(h.sink.report.cached_pages, 8);
  Step({Start(3, 30, 50, 3)});
  EXPECT_EQ(h.All<CallPrefill>().size(), 1u);
  EXPECT_EQ(h.sink.report.evicted_pages, 6u);
  Step({Reply(3), Landed(3)});
  // Two tokens fill its pages, and it takes the last cached ones rather than stop.
  for (int i = 0; i < 9; ++i) Step({Pass()});
  EXPECT_EQ(h.sink.report.running, 1);
  EXPECT_EQ(h.sink.report.free_pages, 0);
  EXPECT_EQ(h.sink.report.preempted, 0u);
}

TEST_F(DecodeCacheTest, TheReplysCachedTokensGoToTheRouter) {
  Step({Start(1, 10, 50)});
  PrefillReplied reply = Reply(1);
  reply.reply.cached_tokens = 8;
  Step({reply});
  EXPECT_EQ(Update().chunks.at(0).cached_tokens, 8);
  EXPECT_EQ(Update().chunks[0].decode_form_tokens, 0);
}

TEST_F(DecodeCacheTest, SaltsShareNothing) {
  StartReceived salted = Start(1, 10, 2);
  salted.request.cache_salt = "tenant";
  Run(salted);
  Step({Start(2, 10, 2)});
  EXPECT_EQ(h.All<CallPrefill>().at(0).call.landing.first_page, 0);
  salted.request.key = Key(3);
  Step({salted});
  EXPECT_EQ(h.All<CallPrefill>().at(0).call.landing.first_page, 2);
  EXPECT_EQ(h.All<CallPrefill>()[0].call.cache_salt, "tenant");
}

TEST_F(DecodeCacheTest, QuarantineHoldsOnlyThePagesThatAreWritten) {
  Run(Start(1, 10, 3));
  Step({Start(2, 15, 3)});
  Step({CancelReceived{kRouter, {Key(2)}}});
  EXPECT_EQ(h.sink.report.quarantined_pages, 2);
  EXPECT_EQ(h.sink.report.free_pages, 8);
  Step({Refusal(2, absl::CancelledError("as asked"))});
  EXPECT_EQ(h.sink.report.free_pages, 10);
}

// The next turn of a conversation: the prompt, what was generated, and a few new tokens.
StartReceived NextTurn(StartReceived first, uint64_t request, int generated) {
  first.request.key = {RequestId(request), 0};
  for (int i = 0; i < generated; ++i) first.request.prompt.push_back(i == 0 ? 7 : 6);
  first.request.prompt.insert(first.request.prompt.end(), {8, 8, 8});
  return first;
}

TEST_F(DecodeCacheTest, GeneratedTokensPagesAreNotReused) {
  const StartReceived first = Start(1, 10, 12);
  Run(first);
  EXPECT_EQ(h.sink.report.cached_pages, 2);
  Step({NextTurn(first, 2, 12)});
  EXPECT_EQ(h.All<CallPrefill>().at(0).call.landing.first_page, 2);
}

class DecodeReuseGeneratedTest : public DecodeCacheTest {
 protected:
  DecodeReuseGeneratedTest() : DecodeCacheTest(CachingOptions(true)) {}
};

TEST_F(DecodeReuseGeneratedTest, TheyAreWhenAskedForAndThenMarked) {
  const StartReceived first = Start(1, 10, 12);
  Run(first);
  EXPECT_EQ(h.sink.report.cached_pages, 5);  // the newest of the 22 tokens has no latents yet
  Step({NextTurn(first, 2, 12)});
  EXPECT_EQ(h.All<CallPrefill>().at(0).call.landing.first_page, 5);
  EXPECT_EQ(h.sink.report.generated_tokens, 12u);
  Step({Reply(2)});
  EXPECT_EQ(Update().chunks.at(0).decode_form_tokens, 12);
}

TEST_F(DecodeReuseGeneratedTest, PromptFormPagesArePreferredWhereBothAreThere) {
  const StartReceived first = Start(1, 6, 6);
  Step({NextTurn(first, 2, 6)});  // lands all of it, before the first one has run
  const std::vector<PageId> landed = h.All<OpenLanding>().at(0).pages;
  Step({first});
  Step({Reply(1), Landed(1)});
  while (!h.All<RunDecodePass>().empty()) Step({Pass()});
  EXPECT_EQ(h.sink.report.cached_pages, 2);  // the second of them is in decode form
  Step({Reply(2), Landed(2)});
  EXPECT_NE(Plan().slices.at(0).pages[0], landed[0]);
  EXPECT_EQ(Plan().slices[0].pages[1], landed[1]);
  EXPECT_EQ(h.sink.report.generated_tokens, 0u);
}

}  // namespace
}  // namespace baton::scheduler
