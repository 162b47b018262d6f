// The decode planner: admission, prefill, hand-off, release.

#include "tests/scheduler/decode_fixture.h"

#include "gtest/gtest.h"

namespace baton::scheduler {
namespace {

TEST_F(DecodePlannerTest, StartReservesPagesAndCallsPrefill) {
  Step({Start(1, 6)});
  const CallPrefill call = h.All<CallPrefill>().at(0);
  EXPECT_EQ(call.address, "prefill");
  EXPECT_TRUE(call.call.sample_first_token);
  EXPECT_EQ(call.call.landing.transport_address, "here");
  EXPECT_EQ(call.call.landing.epoch, Epoch(1000));
  EXPECT_EQ(call.call.landing.pages.size(), 2u);
  EXPECT_EQ(h.All<OpenLanding>().at(0).pages, call.call.landing.pages);
  EXPECT_EQ(Update().status.free_pages, 8);
  EXPECT_EQ(Update().status.landing, 1);
  EXPECT_EQ(Update().status.starts_received, 1u);
}

TEST_F(DecodePlannerTest, EpochsAreNeverReused) {
  Step({Start(1, 1), Start(2, 1)});
  EXPECT_EQ(epochs[1], Epoch(1000));
  EXPECT_EQ(epochs[2], Epoch(1001));
  Step({Refusal(1, absl::UnavailableError("x"))});
  StartReceived again = Start(1, 1);
  again.request.key.attempt = 1;
  Step({again});
  EXPECT_EQ(epochs[1], Epoch(1002));
}

TEST_F(DecodePlannerTest, FirstTokenGoesOutBeforeTheHandoffIsComplete) {
  Step({Start(1, 6)});
  h.now = h.now + Duration::Millis(10);
  PrefillReplied reply = Reply(1);
  reply.reply.wait = Duration::Millis(2);
  reply.reply.compute = Duration::Millis(5);
  Step({reply});
  const TokenChunk chunk = Update().chunks.at(0);
  EXPECT_EQ(chunk.first_index, 0);
  EXPECT_EQ(chunk.tokens.at(0).token, 7);
  ASSERT_TRUE(chunk.has_first_token_timings);
  EXPECT_EQ(chunk.timings.prefill_wait, Duration::Millis(2));
  EXPECT_EQ(chunk.timings.prefill, Duration::Millis(5));
  EXPECT_EQ(chunk.timings.transfer_exposed, Duration::Millis(3));
  EXPECT_TRUE(h.All<RunDecodePass>().empty());  // not landed
  Step({Landed(1)});
  EXPECT_EQ(h.All<CloseLanding>().size(), 1u);
  const SequenceSlice slice = Plan().slices.at(0);
  EXPECT_EQ(slice.first_position, 6);
  EXPECT_EQ(slice.row_count, 1);
  EXPECT_EQ(slice.sequence.size(), 7u);
  EXPECT_TRUE(slice.sample);
}

TEST_F(DecodePlannerTest, MissingMessagesMakeANewAttempt) {
  Step({Start(1, 6)});
  Step({Reply(1)});
  h.now = h.now + Duration::Millis(100);
  Step();
  EXPECT_EQ(OnlyEnd().kind, EndKind::kRetryable);
  EXPECT_EQ(Update().released.size(), 1u);  // prefill has replied: no writer
  EXPECT_EQ(h.sink.report.handoff_timeouts, 1u);
  EXPECT_EQ(h.sink.report.free_pages, 10);
}

TEST_F(DecodePlannerTest, WrongMessageCountMakesANewAttempt) {
  Step({Start(1, 6)});
  Step({Reply(1), Landed(1, 2)});
  EXPECT_EQ(OnlyEnd().kind, EndKind::kRetryable);
  EXPECT_EQ(OnlyEnd().status.code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(h.All<RunDecodePass>().empty());
}

TEST_F(DecodePlannerTest, CorruptLandingEndsAtOnceButItsPagesWaitForTheWriter) {
  Step({Start(1, 6)});
  Step({LandingCorrupted{Key(1), epochs[1], absl::DataLossError("sum")}});
  EXPECT_EQ(OnlyEnd().kind, EndKind::kRetryable);
  EXPECT_TRUE(Update().released.empty());
  EXPECT_EQ(h.All<CancelPrefill>().size(), 1u);
  EXPECT_EQ(h.sink.report.quarantined_pages, 2);
  EXPECT_EQ(h.sink.report.free_pages, 8);
  Step({Refusal(1, absl::CancelledError("as asked"))});
  EXPECT_EQ(Update().released.size(), 1u);
  EXPECT_EQ(h.sink.report.free_pages, 10);
}

TEST_F(DecodePlannerTest, EventsOfAnotherEpochAreStale) {
  Step({Start(1, 6)});
  Step({LandingCompleted{Key(1), Epoch(999), 3}, Reply(1)});
  EXPECT_EQ(h.sink.report.stale_messages, 1u);
  EXPECT_TRUE(h.All<RunDecodePass>().empty());
}

TEST_F(DecodePlannerTest, CancelInPrefillQuarantinesUntilTheReply) {
  Step({Start(1, 6)});
  Step({CancelReceived{kRouter, {Key(1)}}});
  EXPECT_EQ(OnlyEnd().kind, EndKind::kCancelled);
  EXPECT_EQ(h.All<CancelPrefill>().size(), 1u);
  EXPECT_EQ(h.All<CloseLanding>().size(), 1u);  // from here messages are refused
  EXPECT_EQ(h.sink.report.quarantined_pages, 2);
  Step({Reply(1)});  // it crossed the cancel
  EXPECT_TRUE(Update().ends.empty());
  EXPECT_TRUE(Update().chunks.empty());
  EXPECT_EQ(Update().released.at(0), Key(1));
  EXPECT_EQ(h.sink.report.free_pages, 10);
}

TEST_F(DecodePlannerTest, QuarantineEndsWhenTheWorkerIsGoneOrTimeIsUp) {
  Step({Start(1, 6), Start(2, 6)});
  Step({CancelReceived{kRouter, {Key(1)}}, CancelReceived{kRouter, {Key(2)}}});
  Step({PrefillCallFailed{Key(1), absl::UnavailableError("reset"), true}});
  EXPECT_EQ(Update().released.at(0), Key(1));
  h.now = h.now + Duration::Millis(300);
  Step();
  EXPECT_EQ(Update().released.at(0), Key(2));
  EXPECT_EQ(h.sink.report.release_timeouts, 1u);
  EXPECT_EQ(h.sink.report.free_pages, 10);
}

TEST_F(DecodePlannerTest, CancelWhileDecodingFreesAtOnce) {
  Land(1, 6);
  Step({Pass(), CancelReceived{kRouter, {Key(1)}}});
  EXPECT_EQ(OnlyEnd().kind, EndKind::kCancelled);
  EXPECT_EQ(Update().released.at(0), Key(1));
  EXPECT_EQ(h.sink.report.free_pages, 10);
  EXPECT_TRUE(h.All<RunDecodePass>().empty());
}

TEST_F(DecodePlannerTest, PrefillAnswersDecideHowAnAttemptEnds) {
  const std::pair<absl::Status, EndKind> cases[] = {
      {absl::ResourceExhaustedError("full"), EndKind::kRefused},
      {absl::UnavailableError("hand-off"), EndKind::kRetryable},
      {absl::InternalError("pass"), EndKind::kRetryable},
      {absl::CancelledError("unasked"), EndKind::kRetryable},
      {absl::InvalidArgumentError("never"), EndKind::kFailed},
      {absl::DeadlineExceededError("late"), EndKind::kFailed}};
  uint64_t request = 0;
  for (const auto& [status, kind] : cases) {
    Step({Start(++request, 1)});
    Step({Refusal(request, status)});
    EXPECT_EQ(OnlyEnd().kind, kind) << status;
    EXPECT_EQ(OnlyEnd().status, status);
    EXPECT_EQ(Update().released.size(), 1u);
  }
}

TEST_F(DecodePlannerTest, LostPrefillWorkerIsNamed) {
  Step({Start(1, 1)});
  Step({PrefillCallFailed{Key(1), absl::UnavailableError("reset"), true}});
  EXPECT_EQ(OnlyEnd().kind, EndKind::kRetryable);
  EXPECT_TRUE(OnlyEnd().prefill_lost);
}

TEST_F(DecodePlannerTest, SilentPrefillIsGivenUp) {
  Step({Start(1, 1)});
  h.now = h.now + Duration::Millis(1'000);
  Step();
  EXPECT_EQ(OnlyEnd().kind, EndKind::kRetryable);
  EXPECT_EQ(h.All<CancelPrefill>().size(), 1u);
}

TEST_F(DecodePlannerTest, DeadlineEndsTheAttemptInAnyPhase) {
  StartReceived start = Start(1, 1);
  start.request.remaining = Duration::Millis(10);
  Step({start});
  h.now = h.now + Duration::Millis(10);
  Step();
  EXPECT_EQ(OnlyEnd().kind, EndKind::kFailed);
  EXPECT_EQ(OnlyEnd().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(h.sink.report.quarantined_pages, 1);
}

}  // namespace
}  // namespace baton::scheduler
