// The router: retries and ends.

#include "tests/scheduler/router_fixture.h"

#include "gtest/gtest.h"

namespace baton::scheduler {
namespace {

// --- retries

TEST_F(RouterTest, RetryGoesToAnotherPrefillWorkerWithWhatWasDelivered) {
  h.Step({Join(kDecodeA), Join(kPrefillA, Prefill(4, 0)), Join(kPrefillB, Prefill(4, 1000))});
  h.Step({Arrive(1)});
  EXPECT_EQ(OnlyStart().request.prefill_address, "pa");
  h.Step({Update({Chunk(Key(1), 0, {5})},
                 {End(Key(1), EndKind::kRetryable, absl::DataLossError("x"))}, {Key(1)})});
  EXPECT_EQ(OnlyStart().request.key, Key(1, 1));
  EXPECT_EQ(OnlyStart().request.prefill_address, "pb");
  EXPECT_EQ(OnlyStart().request.delivered, std::vector<TokenId>{5});
}

// A's pages are the emptier ones; B has room, and then none.
TEST_F(RouterTest, RetryGoesToAnotherDecodeRankWhileOneHasRoom) {
  h.Step({Join(kDecodeA), Join(kDecodeB, Decode(2, 12)), Join(kPrefillA, Prefill())});
  h.Step({Arrive(1)});
  EXPECT_EQ(OnlyStart().decode, kDecodeA);
  h.Step({Update({}, {End(Key(1), EndKind::kRetryable)}, {Key(1)})});
  EXPECT_EQ(OnlyStart().decode, kDecodeB);
  // What has just failed one is not for others either; it is better than nothing.
  h.Step({Arrive(2)});
  EXPECT_EQ(OnlyStart().decode, kDecodeB);
  h.Step({Arrive(3)});
  EXPECT_EQ(OnlyStart().decode, kDecodeA);
  h.StepAfter(Duration::Millis(100), {Arrive(4)});
  EXPECT_EQ(OnlyStart().decode, kDecodeA);
}

TEST_F(RouterTest, ALostPrefillWorkerIsNotTheDecodeRanksFault) {
  h.Step({Join(kDecodeA), Join(kDecodeB, Decode(4, 12)), Join(kPrefillA, Prefill()),
          Join(kPrefillB, Prefill())});
  h.Step({Arrive(1)});
  RequestEnd end = End(Key(1), EndKind::kRetryable);
  end.prefill_lost = true;
  h.Step({Update({}, {end}, {Key(1)})});
  EXPECT_EQ(OnlyStart().decode, kDecodeA);
}

TEST_F(RouterTest, OnlyPrefillWorkerIsTriedAgain) {
  JoinPair();
  h.Step({Arrive(1)});
  h.Step({Update({}, {End(Key(1), EndKind::kRetryable)}, {Key(1)})});
  EXPECT_EQ(OnlyStart().request.prefill_address, "pa");
}

TEST_F(RouterTest, AttemptsAreBounded) {
  JoinPair();
  h.Step({Arrive(1)});
  for (uint32_t attempt = 0; attempt < 3; ++attempt) {
    h.Step({Update({}, {End(Key(1, attempt), EndKind::kRetryable, absl::DataLossError("why"))},
                   {Key(1, attempt)})});
  }
  EXPECT_EQ(OnlyResult().status.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(std::string(OnlyResult().status.message()).find("why"), std::string::npos);
  EXPECT_EQ(OnlyResult().attempts, 3);
}

TEST_F(RouterTest, RefusalCountsAsNoAttemptAndBacksOff) {
  JoinPair();
  h.Step({Arrive(1)});
  h.Step(
      {Update({}, {End(Key(1), EndKind::kRefused, absl::ResourceExhaustedError("x"))}, {Key(1)})});
  EXPECT_TRUE(h.All<SendStart>().empty());
  EXPECT_EQ(h.decider.NextWake(), h.now + Duration::Millis(1));
  h.StepAfter(Duration::Millis(1));
  EXPECT_EQ(OnlyStart().request.key, Key(1, 1));
}

TEST_F(RouterTest, RefusalsWithoutProgressAreBounded) {
  JoinPair();
  h.Step({Arrive(1)});
  uint32_t attempt = 0;
  for (; attempt < 10 && h.All<RequestResult>().empty(); ++attempt) {
    h.Step({Update({}, {End(Key(1, attempt), EndKind::kRefused)}, {Key(1, attempt)})});
    if (h.All<RequestResult>().empty()) h.StepAfter(Duration::Millis(4));
  }
  EXPECT_EQ(attempt, 6u);  // max_requeues is 5
  EXPECT_EQ(OnlyResult().status.code(), absl::StatusCode::kUnavailable);
}

TEST_F(RouterTest, ProgressResetsTheBoundOnPreemptions) {
  JoinPair();
  h.Step({Arrive(1, 4, 10)});
  for (uint32_t attempt = 0; attempt < 9; ++attempt) {
    h.Step({Update({Chunk(Key(1, attempt), static_cast<int>(attempt), {5})},
                   {End(Key(1, attempt), EndKind::kPreempted)}, {Key(1, attempt)})});
    EXPECT_TRUE(h.All<RequestResult>().empty());
    h.StepAfter(Duration::Millis(4));
    EXPECT_EQ(OnlyStart().request.delivered.size(), attempt + 1u);
  }
}

TEST_F(RouterTest, RetriedRequestGoesBeforeLaterOnes) {
  h.Step({Join(kDecodeA), Join(kPrefillA, Prefill(1))});
  h.Step({Arrive(1)});
  h.Step({Arrive(2)});
  h.Step({Update({}, {End(Key(1), EndKind::kRetryable)}, {Key(1)})});
  EXPECT_EQ(OnlyStart().request.key, Key(1, 1));
}

TEST_F(RouterTest, PrefillWorkerReportedLostIsAvoidedForAWhile) {
  h.Step({Join(kDecodeA), Join(kPrefillA, Prefill(4, 0)), Join(kPrefillB, Prefill(4, 1000))});
  h.Step({Arrive(1)});
  RequestEnd end = End(Key(1), EndKind::kRetryable);
  end.prefill_lost = true;
  h.Step({Update({}, {end}, {Key(1)}), Arrive(2)});
  for (const SendStart& start : h.All<SendStart>()) {
    EXPECT_EQ(start.request.prefill_address, "pb");
  }
  h.StepAfter(Duration::Millis(100), {Arrive(3)});
  EXPECT_EQ(OnlyStart().request.prefill_address, "pa");
}

TEST_F(RouterTest, LostRankRestartsItsRequestsElsewhere) {
  h.Step({Join(kDecodeA), Join(kPrefillA, Prefill())});
  h.Step({Arrive(1)});
  h.Step({Update({Chunk(Key(1), 0, {5, 6})}), Join(kDecodeB)});
  h.Step({DecodeLost{kDecodeA, absl::UnavailableError("reset")}});
  EXPECT_EQ(OnlyStart().decode, kDecodeB);
  EXPECT_EQ(OnlyStart().request.delivered, (std::vector<TokenId>{5, 6}));
  // Its last words are stale.
  h.Step({Update({Chunk(Key(1), 2, {7})})});
  EXPECT_TRUE(h.All<EmitTokens>().empty());
}

TEST_F(RouterTest, RankThatComesBackUnderItsNumberWasLostFirst) {
  JoinPair();
  h.Step({Arrive(1)});
  h.Step({Join(kDecodeA)});
  EXPECT_EQ(OnlyStart().request.key, Key(1, 1));
  EXPECT_EQ(h.sink.report.decode_losses, 1u);
}

TEST_F(RouterTest, StaleAttemptCannotSpeakForItsSuccessor) {
  h.Step({Join(kDecodeA), Join(kPrefillA, Prefill())});
  h.Step({Arrive(1)});
  h.Step({Update({}, {End(Key(1, 0), EndKind::kRetryable)})});  // not released yet
  EXPECT_EQ(OnlyStart().request.key, Key(1, 1));
  h.Step({Update({Chunk(Key(1, 0), 0, {5})}, {End(Key(1, 0), EndKind::kFinished)})});
  EXPECT_TRUE(h.All<EmitTokens>().empty());
  EXPECT_TRUE(h.All<RequestResult>().empty());
}

// --- ends

TEST_F(RouterTest, CancelInTheQueueEndsAtOnce) {
  h.Step({Arrive(1)});
  h.Step({ClientCancelled{RequestId(1)}});
  EXPECT_EQ(OnlyResult().status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(OnlyResult().reason, FinishReason::kCancelled);
  EXPECT_TRUE(h.All<SendCancel>().empty());
}

TEST_F(RouterTest, CancelInFlightAnswersAtOnceAndWaitsForTheWorkers) {
  JoinPair();
  h.Step({Arrive(1)});
  h.Step({ClientCancelled{RequestId(1)}});
  EXPECT_EQ(OnlyResult().status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(h.All<SendCancel>().at(0).request.key, Key(1));
  EXPECT_EQ(h.sink.report.releasing, 1);
  h.Step({Update({}, {End(Key(1), EndKind::kCancelled)})});
  EXPECT_EQ(h.sink.report.releasing, 1);
  EXPECT_TRUE(h.All<RequestResult>().empty());
  h.Step({Update({}, {}, {Key(1)})});
  EXPECT_EQ(h.sink.report.releasing, 0);
}

TEST_F(RouterTest, ReleaseIsNotAwaitedForEver) {
  JoinPair();
  h.Step({Arrive(1)});
  h.Step({ClientCancelled{RequestId(1)}});
  h.StepAfter(Duration::Millis(500));
  EXPECT_EQ(h.sink.report.releasing, 0);
  EXPECT_EQ(h.sink.report.release_timeouts, 1u);
}

TEST_F(RouterTest, CancelledTwiceEndsOnce) {
  h.Step({Arrive(1)});
  h.Step({ClientCancelled{RequestId(1)}, ClientCancelled{RequestId(1)}});
  EXPECT_EQ(h.All<RequestResult>().size(), 1u);
}

TEST_F(RouterTest, DeadlineInTheQueue) {
  Arrived arrived = Arrive(1);
  arrived.deadline = h.now + Duration::Millis(5);
  h.Step({arrived});
  EXPECT_EQ(h.decider.NextWake(), arrived.deadline);
  h.StepAfter(Duration::Millis(5));
  EXPECT_EQ(OnlyResult().status.code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(RouterTest, DeadlineInFlightAnswersAtOnceAndCancels) {
  JoinPair();
  Arrived arrived = Arrive(1);
  arrived.deadline = h.now + Duration::Millis(5);
  h.Step({arrived});
  h.StepAfter(Duration::Millis(5));
  EXPECT_EQ(OnlyResult().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(h.All<SendCancel>().size(), 1u);
  EXPECT_EQ(h.sink.report.releasing, 1);
}

TEST_F(RouterTest, FailedAttemptCarriesItsStatusToTheClient) {
  JoinPair();
  h.Step({Arrive(1)});
  h.Step(
      {Update({}, {End(Key(1), EndKind::kFailed, absl::InvalidArgumentError("why"))}, {Key(1)})});
  EXPECT_EQ(OnlyResult().status, absl::InvalidArgumentError("why"));
}

TEST_F(RouterTest, UsageCountsWhatWasDelivered) {
  JoinPair();
  h.Step({Arrive(1, 7)});
  h.Step({Update({Chunk(Key(1), 0, {5, 6})}, {End(Key(1), EndKind::kFinished)}, {Key(1)})});
  EXPECT_EQ(OnlyResult().prompt_tokens, 7);
  EXPECT_EQ(OnlyResult().output_tokens, 2);
  EXPECT_EQ(OnlyResult().reason, FinishReason::kLength);
}

TEST_F(RouterTest, FirstTokenThatStopsGivesAnEmptyAnswerWithATime) {
  JoinPair();
  h.Step({Arrive(1)});
  RequestEnd end = End(Key(1), EndKind::kFinished);
  end.reason = FinishReason::kStop;
  h.Step({Update({Chunk(Key(1), 0, {})}, {end}, {Key(1)})});
  EXPECT_TRUE(h.All<EmitTokens>().empty());
  EXPECT_TRUE(OnlyResult().has_first_token);
  EXPECT_EQ(OnlyResult().output_tokens, 0);
}

TEST_F(RouterTest, DrainRefusesNewRequestsAndFinishesOldOnes) {
  JoinPair();
  h.Step({Arrive(1)});
  h.Step({DrainRequested{}, Arrive(2)});
  EXPECT_EQ(OnlyResult().id, RequestId(2));
  EXPECT_EQ(OnlyResult().status.code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(h.decider.drained());
  h.Step({Update({Chunk(Key(1), 0, {5})}, {End(Key(1), EndKind::kFinished)}, {Key(1)})});
  EXPECT_TRUE(h.decider.drained());
}

TEST_F(RouterTest, LostPrefillWorkerOnlyTakesNoMoreWork) {
  JoinPair();
  h.Step({Arrive(1)});
  h.Step({PrefillLost{kPrefillA, absl::UnavailableError("reset")}, Arrive(2)});
  EXPECT_TRUE(h.All<RequestResult>().empty());
  EXPECT_EQ(h.sink.report.running, 1);
  EXPECT_EQ(h.sink.report.queued, 1);
  // The running one is unharmed if its hand-off was over.
  h.Step({Update({Chunk(Key(1), 0, {5})})});
  EXPECT_EQ(h.All<EmitTokens>().size(), 1u);
}

}  // namespace
}  // namespace baton::scheduler
