// The decode planner: passes, ends, preemption, credits.

#include "tests/scheduler/decode_fixture.h"

#include "gtest/gtest.h"

namespace baton::scheduler {
namespace {

TEST_F(DecodePlannerTest, EndOfSequenceStopsAndIsNotDelivered) {
  Land(1, 6);
  Step({Pass(kEosToken)});
  EXPECT_TRUE(Update().chunks.empty());
  EXPECT_EQ(OnlyEnd().kind, EndKind::kFinished);
  EXPECT_EQ(OnlyEnd().reason, FinishReason::kStop);
  EXPECT_EQ(Update().released.size(), 1u);
}

TEST_F(DecodePlannerTest, IgnoredEndOfSequenceIsATokenLikeAnyOther) {
  StartReceived start = Start(1, 6);
  start.request.sampling.ignore_eos = true;
  Step({start});
  Step({Reply(1), Landed(1)});
  Step({Pass(kEosToken)});
  EXPECT_EQ(Update().chunks.at(0).tokens.at(0).token, kEosToken);
  EXPECT_TRUE(Update().ends.empty());
}

TEST_F(DecodePlannerTest, StopIdStopsAndIsNotDelivered) {
  StartReceived start = Start(1, 6);
  start.request.sampling.stop_token_ids = {33};
  Step({start});
  Step({Reply(1), Landed(1)});
  Step({Pass(33)});
  EXPECT_TRUE(Update().chunks.empty());
  EXPECT_EQ(OnlyEnd().reason, FinishReason::kStop);
}

TEST_F(DecodePlannerTest, FirstTokenThatStopsStillCarriesTheTimings) {
  Step({Start(1, 6)});
  Step({Reply(1, kEosToken)});
  EXPECT_TRUE(Update().chunks.at(0).tokens.empty());
  EXPECT_TRUE(Update().chunks.at(0).has_first_token_timings);
  EXPECT_EQ(OnlyEnd().reason, FinishReason::kStop);
  EXPECT_EQ(h.sink.report.free_pages, 10);
}

TEST_F(DecodePlannerTest, MaxTokensEndsWithLength) {
  Step({Start(1, 6, 1)});
  Step({Reply(1)});  // the only token comes from prefill: the landing is not needed
  EXPECT_EQ(Update().chunks.at(0).tokens.size(), 1u);
  EXPECT_EQ(OnlyEnd().reason, FinishReason::kLength);
  Land(2, 6, 2);
  Step({Pass()});
  EXPECT_EQ(Update().chunks.at(0).first_index, 1);
  EXPECT_EQ(OnlyEnd().reason, FinishReason::kLength);
}

TEST_F(DecodePlannerTest, ResumedRequestReplaysWhatWasDelivered) {
  Step({Start(1, 6, 50, 4)});
  EXPECT_FALSE(h.All<CallPrefill>().at(0).call.sample_first_token);
  Step({Reply(1, 0, false), Landed(1)});
  const SequenceSlice slice = Plan().slices.at(0);
  EXPECT_EQ(slice.first_position, 6);
  EXPECT_EQ(slice.row_count, 4);
  EXPECT_EQ(slice.prompt_tokens, 6);
  EXPECT_TRUE(slice.sample);
  Step({Pass()});
  EXPECT_EQ(Update().chunks.at(0).first_index, 4);
  EXPECT_TRUE(Update().chunks.at(0).has_first_token_timings);
}

TEST_F(DecodePlannerTest, LongReplayLeavesEveryOtherSequenceItsRow) {
  Land(1, 1);
  Step({Pass(), Start(2, 1, 50, 20)});
  Step({Pass(), Reply(2, 0, false), Landed(2)});
  const BatchPlan plan = Plan();
  ASSERT_EQ(plan.slices.size(), 2u);
  EXPECT_EQ(plan.slices[0].row_count, 1);
  EXPECT_EQ(plan.slices[1].row_count, 7);  // of 8 rows
  EXPECT_FALSE(plan.slices[1].sample);
  Step({Pass()});
  EXPECT_EQ(Plan().slices[1].first_position, 8);
}

TEST_F(DecodePlannerTest, SequencesGrowPageByPage) {
  Land(1, 4);  // its page is full; the first pass needs a second one
  EXPECT_EQ(Plan().slices.at(0).pages.size(), 2u);
  EXPECT_EQ(h.sink.report.free_pages, 8);
  for (int i = 0; i < 4; ++i) Step({Pass()});
  EXPECT_EQ(Plan().slices.at(0).pages.size(), 3u);
}

TEST_F(DecodePlannerTest, OldestTakesThePagesOfTheYoungest) {
  Land(1, 16);  // 4 pages, grows to 5
  Land(2, 15);  // 4 pages; one left
  ASSERT_EQ(Plan().slices.size(), 2u);
  std::vector<RequestKey> preempted;
  for (int i = 0; i < 12 && preempted.empty(); ++i) {
    Step({Pass()});
    for (const RequestEnd& end : Update().ends) {
      EXPECT_EQ(end.kind, EndKind::kPreempted);
      preempted.push_back(end.key);
    }
  }
  ASSERT_EQ(preempted.size(), 1u);
  EXPECT_EQ(preempted[0], Key(2));
  EXPECT_EQ(Plan().slices.size(), 1u);
  EXPECT_EQ(Plan().slices[0].key, Key(1));
}

TEST_F(DecodePlannerTest, LonelySequenceEndsWhenTheRankIsFull) {
  Land(1, 39, 150);  // 40 tokens fit
  Step({Pass()});
  EXPECT_EQ(OnlyEnd().kind, EndKind::kFinished);
  EXPECT_EQ(OnlyEnd().reason, FinishReason::kLength);
  EXPECT_EQ(h.sink.report.free_pages, 10);
}

TEST_F(DecodePlannerTest, FailedPassMakesNewAttempts) {
  Land(1, 1);
  Land(2, 1);
  PassFinished failed;
  failed.status = absl::InternalError("boom");
  Step({failed});
  EXPECT_EQ(Update().ends.size(), 2u);
  EXPECT_EQ(Update().ends[0].kind, EndKind::kRetryable);
  EXPECT_EQ(h.sink.report.pass_failures, 2u);
  EXPECT_EQ(h.sink.report.free_pages, 10);
}

TEST_F(DecodePlannerTest, FailedSliceLeavesTheOthersOfItsPassAlone) {
  Land(1, 1);
  Land(2, 1);
  Land(3, 1);
  PassFinished finished = Pass(9);
  ASSERT_EQ(finished.output.tokens.size(), 3u);
  finished.output.tokens.erase(finished.output.tokens.begin() + 1);
  finished.output.failures.push_back({Key(2), absl::InternalError("NaN")});
  Step({finished});
  EXPECT_EQ(OnlyEnd().key, Key(2));
  EXPECT_EQ(OnlyEnd().kind, EndKind::kRetryable);
  EXPECT_EQ(h.sink.report.pass_failures, 1u);
  ASSERT_EQ(Update().chunks.size(), 2u);
  EXPECT_EQ(Update().chunks[0].key, Key(1));
  EXPECT_EQ(Update().chunks[1].key, Key(3));
  ASSERT_EQ(Plan().slices.size(), 2u);
  EXPECT_EQ(Plan().slices[1].key, Key(3));
}

TEST_F(DecodePlannerTest, StartsBeyondTheRoomAreRefusedNotQueued) {
  Step({Start(1, 30), Start(2, 16)});  // 8 + 4 of 10 pages
  EXPECT_EQ(OnlyEnd().key, Key(2));
  EXPECT_EQ(OnlyEnd().kind, EndKind::kRefused);
  EXPECT_EQ(Update().released.at(0), Key(2));
}

TEST_F(DecodePlannerTest, StartThatCanNeverRunFails) {
  Step({Start(1, 41)});
  EXPECT_EQ(OnlyEnd().kind, EndKind::kFailed);
  EXPECT_EQ(OnlyEnd().status.code(), absl::StatusCode::kInvalidArgument);
  Step({Start(2, 0)});
  EXPECT_EQ(OnlyEnd().status.code(), absl::StatusCode::kInvalidArgument);
  Step({Start(3, 5, 4, 4)});
  EXPECT_EQ(OnlyEnd().status.code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(DecodePlannerTest, CreditsFillTheLandingsAndNoMore) {
  EXPECT_EQ(Update().status.credits_granted, 4u);
  Step({Start(1, 1)});
  EXPECT_EQ(Update().status.credits_granted, 4u);  // three left, one landing
  Step({Reply(1), Landed(1)});
  EXPECT_EQ(Update().status.credits_granted, 5u);
}

TEST_F(DecodePlannerTest, StartWithoutCreditIsRefused) {
  Step({Start(1, 1), Start(2, 1), Start(3, 1), Start(4, 1), Start(5, 1)});
  EXPECT_EQ(OnlyEnd().key, Key(5));
  EXPECT_EQ(OnlyEnd().kind, EndKind::kRefused);
}

TEST_F(DecodePlannerTest, CreditsAreSharedByRouters) {
  h.Step({RouterJoined{RouterId(6)}});
  for (const SendUpdate& update : h.All<SendUpdate>()) {
    // The first router's four cannot be taken back; the second still gets one.
    EXPECT_EQ(update.update.status.credits_granted, update.router == kRouter ? 4u : 1u);
  }
}

TEST_F(DecodePlannerTest, NoCreditsWhenPagesAreShort) {
  DecodePlannerOptions options = SmallDecodeOptions();
  options.pages_per_credit = 4;
  DecodeHarness tight(options);
  tight.Step({RouterJoined{kRouter}});
  EXPECT_EQ(tight.All<SendUpdate>().at(0).update.status.credits_granted, 2u);  // 10 / 4
}

TEST_F(DecodePlannerTest, LostRouterTakesItsRequestsWithIt) {
  Land(1, 1);
  Step({Pass(), Start(2, 1)});
  h.Step({Pass(), RouterLost{kRouter}});
  EXPECT_TRUE(h.All<SendUpdate>().empty());
  EXPECT_EQ(h.All<CancelPrefill>().size(), 1u);
  EXPECT_EQ(h.sink.report.running, 0);
  EXPECT_EQ(h.sink.report.quarantined_pages, 1);
  h.Step({Reply(2)});
  EXPECT_EQ(h.sink.report.free_pages, 10);
}

TEST_F(DecodePlannerTest, DrainRefusesStartsAndFinishesTheRest) {
  Land(1, 1, 2);
  Step({Pass(), DrainRequested{}, Start(2, 1)});
  EXPECT_TRUE(Update().status.draining);
  ASSERT_EQ(Update().ends.size(), 2u);
  EXPECT_EQ(Update().ends[0].kind, EndKind::kFinished);
  EXPECT_EQ(Update().ends[1].kind, EndKind::kRefused);
  EXPECT_TRUE(h.decider.drained());
}

TEST_F(DecodePlannerTest, QuietStepsSendNothing) {
  Step();
  EXPECT_TRUE(h.sink.actions.empty());
}

TEST_F(DecodePlannerTest, WakesForTheNearestTimer) {
  Step({Start(1, 1)});
  EXPECT_EQ(h.decider.NextWake(), h.now + Duration::Millis(1'000));
  Step({Reply(1)});
  EXPECT_EQ(h.decider.NextWake(), h.now + Duration::Millis(100));
  Step({Landed(1)});
  EXPECT_EQ(h.decider.NextWake(), h.now + Duration::Seconds(60));
}

}  // namespace
}  // namespace baton::scheduler
