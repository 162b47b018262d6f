#include "scheduler/prefill_planner.h"

#include <utility>

#include "gtest/gtest.h"
#include "tests/scheduler/harness.h"

namespace baton::scheduler {
namespace {

constexpr CallerId kCaller(7);

PrefillPlannerOptions SmallOptions() {
  PrefillPlannerOptions options;
  options.page_tokens = 4;
  options.total_pages = 8;
  options.max_positions = 100;
  options.slots = 3;
  options.chunk_tokens = 6;
  options.prefix_cache = false;  // its tests are prefill_cache_test.cc
  options.handoff_timeout = Duration::Millis(50);
  return options;
}

class PrefillPlannerTest : public testing::Test {
 protected:
  static RequestKey Key(uint64_t request) { return {RequestId(request), 0}; }

  CallReceived Call(uint64_t request, int tokens, Duration remaining = Duration::Seconds(10)) {
    CallReceived event;
    event.caller = kCaller;
    event.call.key = Key(request);
    event.call.prompt.assign(static_cast<size_t>(tokens), 1);
    event.call.remaining = remaining;
    event.call.landing.epoch = Epoch(request);
    event.call.landing.pages.resize(static_cast<size_t>(PagesFor(tokens, 4)));
    event.received_at = h.now;
    return event;
  }

  // The result of the pass that the last step asked for.
  PassFinished Pass() {
    PassFinished finished;
    const RunPrefillPass pass = h.All<RunPrefillPass>().at(0);
    for (const SequenceSlice& slice : pass.plan.slices) {
      if (!slice.sample) continue;
      SampledToken token;
      token.key = slice.key;
      token.token = 42;
      finished.output.tokens.push_back(token);
    }
    finished.finished_at = h.now;
    return finished;
  }

  PrefillReply OnlyReply() {
    const auto replies = h.All<SendReply>();
    EXPECT_EQ(replies.size(), 1u);
    if (replies.empty()) return {};
    EXPECT_EQ(replies[0].caller, kCaller);
    return replies[0].reply;
  }

  Harness<PrefillPlanner, PrefillEvent, PrefillActionSink> h{SmallOptions()};
};

TEST_F(PrefillPlannerTest, LongPromptRunsInChunksAndSamplesAfterTheLast) {
  h.Step({Call(1, 14)});
  ASSERT_EQ(h.All<RunPrefillPass>().size(), 1u);
  const BatchPlan first = h.All<RunPrefillPass>()[0].plan;
  EXPECT_EQ(first.form, Form::kPrefill);
  ASSERT_EQ(first.slices.size(), 1u);
  EXPECT_EQ(first.slices[0].first_position, 0);
  EXPECT_EQ(first.slices[0].row_count, 6);
  EXPECT_FALSE(first.slices[0].sample);
  h.Step({Pass()});
  EXPECT_EQ(h.All<RunPrefillPass>()[0].plan.slices[0].first_position, 6);
  h.Step({Pass()});
  const SequenceSlice last = h.All<RunPrefillPass>()[0].plan.slices[0];
  EXPECT_EQ(last.first_position, 12);
  EXPECT_EQ(last.row_count, 2);
  EXPECT_TRUE(last.sample);
}

TEST_F(PrefillPlannerTest, PagesShipOnceTheirLastTokenIsThere) {
  h.Step({Call(1, 14)});  // chunks of 6, 6, 2; pages of 4
  const auto slice = [this] { return h.All<RunPrefillPass>().at(0).handoffs.at(0); };
  EXPECT_EQ(slice().first_page, 0u);
  EXPECT_EQ(slice().pages.size(), 1u);  // tokens 0..3; 4 and 5 wait for their page to fill
  EXPECT_EQ(slice().token_count, 4u);
  EXPECT_FALSE(slice().last);
  h.Step({Pass()});
  EXPECT_EQ(slice().first_page, 1u);
  EXPECT_EQ(slice().pages.size(), 2u);
  EXPECT_EQ(slice().token_count, 8u);
  h.Step({Pass()});
  EXPECT_EQ(slice().first_page, 3u);
  EXPECT_EQ(slice().pages.size(), 1u);
  EXPECT_EQ(slice().token_count, 2u);  // the prompt's end fills its page in part
  EXPECT_TRUE(slice().last);
}

TEST_F(PrefillPlannerTest, BudgetIsSharedInOrderOfArrival) {
  h.Step({Call(1, 4), Call(2, 9)});
  const BatchPlan plan = h.All<RunPrefillPass>()[0].plan;
  ASSERT_EQ(plan.slices.size(), 2u);
  EXPECT_EQ(plan.slices[0].key, Key(1));
  EXPECT_EQ(plan.slices[0].row_count, 4);
  EXPECT_EQ(plan.slices[1].key, Key(2));
  EXPECT_EQ(plan.slices[1].row_count, 2);
  EXPECT_EQ(plan.total_rows, 6);
}

TEST_F(PrefillPlannerTest, ReplyWaitsForPassAndHandoff) {
  h.Step({Call(1, 3)});
  h.now = h.now + Duration::Millis(2);
  h.Step({Pass()});
  EXPECT_TRUE(h.All<SendReply>().empty());
  EXPECT_EQ(h.sink.report.free_pages, 7);  // its pages may still be read
  h.Step({HandoffFinished{Key(1), absl::OkStatus(), 5, 500}});
  const PrefillReply reply = OnlyReply();
  EXPECT_TRUE(reply.status.ok());
  EXPECT_TRUE(reply.has_first_token);
  EXPECT_EQ(reply.first_token.token, 42);
  EXPECT_EQ(reply.messages_posted, 5u);
  EXPECT_EQ(reply.bytes_posted, 500u);
  EXPECT_EQ(reply.compute, Duration::Millis(2));
  EXPECT_EQ(h.sink.report.free_pages, 8);
}

TEST_F(PrefillPlannerTest, ResumedRequestSamplesNothing) {
  CallReceived call = Call(1, 3);
  call.call.sample_first_token = false;
  h.Step({call});
  EXPECT_FALSE(h.All<RunPrefillPass>()[0].plan.slices[0].sample);
  h.Step({Pass(), HandoffFinished{Key(1), absl::OkStatus(), 1, 1}});
  EXPECT_TRUE(OnlyReply().status.ok());
  EXPECT_FALSE(OnlyReply().has_first_token);
}

TEST_F(PrefillPlannerTest, WaitIsMeasuredUntilTheFirstChunk) {
  CallReceived call = Call(1, 3);
  h.StepAfter(Duration::Millis(3), {call});
  h.Step({Pass(), HandoffFinished{Key(1), absl::OkStatus(), 1, 1}});
  EXPECT_EQ(OnlyReply().wait, Duration::Millis(3));
}

TEST_F(PrefillPlannerTest, CallWithoutRoomIsRefusedAtOnce) {
  h.Step({Call(1, 20), Call(2, 16)});  // 5 + 4 pages of 8
  const PrefillReply reply = OnlyReply();
  EXPECT_EQ(reply.key, Key(2));
  EXPECT_EQ(reply.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(h.sink.report.refused, 1u);
}

TEST_F(PrefillPlannerTest, CallWithoutSlotIsRefusedAtOnce) {
  h.Step({Call(1, 1), Call(2, 1), Call(3, 1), Call(4, 1)});
  EXPECT_EQ(OnlyReply().key, Key(4));
  EXPECT_EQ(OnlyReply().status.code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(PrefillPlannerTest, CallThatCanNeverRunIsInvalid) {
  h.Step({Call(1, 33)});  // 9 pages of 8
  EXPECT_EQ(OnlyReply().status.code(), absl::StatusCode::kInvalidArgument);
  h.Step({Call(2, 101)});
  EXPECT_EQ(OnlyReply().status.code(), absl::StatusCode::kInvalidArgument);
  CallReceived call = Call(3, 8);
  call.call.landing.pages.pop_back();
  h.Step({call});
  EXPECT_EQ(OnlyReply().status.code(), absl::StatusCode::kInvalidArgument);
  h.Step({Call(4, 0)});
  EXPECT_EQ(OnlyReply().status.code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(PrefillPlannerTest, CancelStopsAtTheChunkBorderAndFreesPages) {
  h.Step({Call(1, 14)});
  h.Step({Pass(), CallCancelled{kCaller, Key(1)}});
  EXPECT_EQ(OnlyReply().status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(h.All<AbortHandoff>().size(), 1u);
  EXPECT_TRUE(h.All<RunPrefillPass>().empty());
  EXPECT_EQ(h.sink.report.free_pages, 8);
}

TEST_F(PrefillPlannerTest, CancelByAnotherCallerIsIgnored) {
  h.Step({Call(1, 3)});
  h.Step({Pass(), CallCancelled{CallerId(8), Key(1)}});
  EXPECT_TRUE(h.All<SendReply>().empty());
  EXPECT_EQ(h.sink.report.stale_messages, 1u);
}

TEST_F(PrefillPlannerTest, DeadlineEndsACallBetweenChunks) {
  h.Step({Call(1, 14, Duration::Millis(5))});
  EXPECT_EQ(h.decider.NextWake(), h.now + Duration::Millis(5));
  h.StepAfter(Duration::Millis(5), {Pass()});
  EXPECT_EQ(OnlyReply().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(h.sink.report.free_pages, 8);
}

TEST_F(PrefillPlannerTest, LostCallerIsForgottenInSilence) {
  h.Step({Call(1, 3), Call(2, 3)});
  h.Step({Pass(), CallerLost{kCaller}});
  EXPECT_TRUE(h.All<SendReply>().empty());
  EXPECT_EQ(h.sink.report.running, 0);
  EXPECT_EQ(h.sink.report.free_pages, 8);
}

TEST_F(PrefillPlannerTest, FailedPassFailsItsCallsOnly) {
  h.Step({Call(1, 6), Call(2, 6)});  // the budget holds the first only
  PassFinished failed;
  failed.status = absl::InternalError("boom");
  failed.finished_at = h.now;
  h.Step({failed});
  EXPECT_EQ(OnlyReply().key, Key(1));
  EXPECT_EQ(OnlyReply().status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(h.All<RunPrefillPass>().at(0).plan.slices[0].key, Key(2));
}

TEST_F(PrefillPlannerTest, FailedSliceLeavesTheOthersOfItsPassAlone) {
  h.Step({Call(1, 3), Call(2, 3)});
  PassFinished finished = Pass();
  ASSERT_EQ(finished.output.tokens.size(), 2u);
  finished.output.tokens.erase(finished.output.tokens.begin());
  finished.output.failures.push_back({Key(1), absl::InternalError("NaN")});
  h.Step({finished, HandoffFinished{Key(1), absl::OkStatus(), 1, 10},
          HandoffFinished{Key(2), absl::OkStatus(), 1, 10}});
  const auto replies = h.All<SendReply>();
  ASSERT_EQ(replies.size(), 2u);
  EXPECT_EQ(replies[0].reply.key, Key(1));
  EXPECT_EQ(replies[0].reply.status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(replies[1].reply.key, Key(2));
  EXPECT_TRUE(replies[1].reply.status.ok());
  EXPECT_EQ(h.sink.report.pass_failures, 1u);
  EXPECT_EQ(h.sink.report.free_pages, 8);
}

TEST_F(PrefillPlannerTest, PassWithTooFewTokensIsAFailure) {
  h.Step({Call(1, 3)});
  PassFinished empty;
  empty.finished_at = h.now;
  h.Step({empty});
  EXPECT_EQ(OnlyReply().status.code(), absl::StatusCode::kInternal);
}

TEST_F(PrefillPlannerTest, FailedHandoffIsUnavailable) {
  h.Step({Call(1, 3)});
  h.Step({Pass(), HandoffFinished{Key(1), absl::UnavailableError("peer"), 1, 10}});
  EXPECT_EQ(OnlyReply().status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(h.sink.report.handoff_failures, 1u);
}

TEST_F(PrefillPlannerTest, StuckHandoffIsGivenUp) {
  h.Step({Call(1, 3)});
  h.Step({Pass()});
  h.StepAfter(Duration::Millis(50));
  EXPECT_EQ(OnlyReply().status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(h.All<AbortHandoff>().size(), 1u);
  EXPECT_EQ(h.sink.report.free_pages, 8);
}

TEST_F(PrefillPlannerTest, AHandoffThatGoesOnIsNotStuck) {
  h.Step({Call(1, 3)});
  h.Step({Pass()});
  for (int i = 0; i < 5; ++i) h.StepAfter(Duration::Millis(40), {HandoffProgressed{Key(1)}});
  EXPECT_TRUE(h.All<SendReply>().empty());
  EXPECT_EQ(h.decider.NextWake(), h.now + Duration::Millis(50));
  h.StepAfter(Duration::Millis(50));
  EXPECT_EQ(OnlyReply().status.code(), absl::StatusCode::kUnavailable);
}

TEST_F(PrefillPlannerTest, DrainRefusesNewCallsAndFinishesOldOnes) {
  h.Step({Call(1, 3)});
  h.Step({Pass(), DrainRequested{}, Call(2, 3)});
  EXPECT_EQ(OnlyReply().key, Key(2));
  EXPECT_EQ(OnlyReply().status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(h.All<PublishStatus>().at(0).status.draining);
  EXPECT_FALSE(h.decider.drained());
  h.Step({HandoffFinished{Key(1), absl::OkStatus(), 1, 1}});
  EXPECT_TRUE(OnlyReply().status.ok());
  EXPECT_TRUE(h.decider.drained());
}

TEST_F(PrefillPlannerTest, StatusIsPublishedWhenItChanges) {
  h.Step();
  ASSERT_EQ(h.All<PublishStatus>().size(), 1u);
  EXPECT_EQ(h.All<PublishStatus>()[0].status.slots, 3);
  h.Step();
  EXPECT_TRUE(h.All<PublishStatus>().empty());
  h.Step({Call(1, 14)});
  const PrefillStatus status = h.All<PublishStatus>().at(0).status;
  EXPECT_EQ(status.running, 1);
  EXPECT_EQ(status.queued_tokens, 14);
  EXPECT_EQ(status.free_pages, 4);
}

}  // namespace
}  // namespace baton::scheduler
