#include "scheduler/decode_planner.h"

#include <utility>

#include "gtest/gtest.h"
#include "tests/scheduler/harness.h"

namespace baton::scheduler {
namespace {

constexpr RouterId kRouter(5);
constexpr TokenId kEosToken = 2;

DecodePlannerOptions SmallOptions() {
  DecodePlannerOptions options;
  options.page_tokens = 4;
  options.total_pages = 10;
  options.max_positions = 200;
  options.transport_address = "here";
  options.first_epoch = 1000;
  options.eos_token_ids = {kEosToken};
  options.max_landings = 4;
  options.max_sequences = 6;
  options.max_batch_rows = 8;
  options.reserve_output_tokens = 1;
  options.pages_per_credit = 1;
  options.handoff_timeout = Duration::Millis(100);
  options.prefill_timeout = Duration::Millis(1'000);
  options.release_timeout = Duration::Millis(300);
  return options;
}

using DecodeHarness = Harness<DecodePlanner, DecodeEvent, DecodeActionSink>;

class DecodePlannerTest : public testing::Test {
 protected:
  explicit DecodePlannerTest(const DecodePlannerOptions& options = SmallOptions()) : h(options) {
    h.Step({RouterJoined{kRouter}});
  }

  static RequestKey Key(uint64_t request) { return {RequestId(request), 0}; }

  StartReceived Start(uint64_t request, int prompt, int max_tokens = 50, int delivered = 0) {
    StartReceived event;
    event.router = kRouter;
    event.request.key = Key(request);
    event.request.prompt.assign(static_cast<size_t>(prompt), 9);
    event.request.delivered.assign(static_cast<size_t>(delivered), 8);
    event.request.sampling.max_tokens = max_tokens;
    event.request.remaining = Duration::Seconds(60);
    event.request.prefill_address = "prefill";
    event.received_at = h.now;
    return event;
  }

  PrefillReplied Reply(uint64_t request, TokenId first = 7, bool has_first = true) {
    PrefillReplied event;
    event.reply.key = Key(request);
    event.reply.has_first_token = has_first;
    event.reply.first_token.token = first;
    event.reply.messages_posted = 3;
    event.received_at = h.now;
    return event;
  }

  static PrefillReplied Refusal(uint64_t request, absl::Status status) {
    PrefillReplied event;
    event.reply.key = Key(request);
    event.reply.status = std::move(status);
    return event;
  }

  LandingCompleted Landed(uint64_t request, uint32_t messages = 3) {
    return {Key(request), epochs.at(request), messages};
  }

  // Remembers the epochs of the landings that the step opened.
  void Step(std::vector<DecodeEvent> events = {}) {
    h.Step(std::move(events));
    for (const OpenLanding& open : h.All<OpenLanding>()) {
      epochs[open.key.request.value()] = open.epoch;
    }
  }

  // Takes a request through prefill and landing; its first pass is planned.
  void Land(uint64_t request, int prompt, int max_tokens = 50) {
    std::vector<DecodeEvent> events;
    if (!h.All<RunDecodePass>().empty()) events.push_back(Pass());
    events.push_back(Start(request, prompt, max_tokens));
    Step(events);
    events.clear();
    if (!h.All<RunDecodePass>().empty()) events.push_back(Pass());
    events.push_back(Reply(request));
    events.push_back(Landed(request));
    Step(events);
  }

  PassFinished Pass(TokenId token = 6) {
    PassFinished finished;
    for (const SequenceSlice& slice : h.All<RunDecodePass>().at(0).plan.slices) {
      if (!slice.sample) continue;
      SampledToken sampled;
      sampled.key = slice.key;
      sampled.token = token;
      finished.output.tokens.push_back(sampled);
    }
    finished.finished_at = h.now;
    return finished;
  }

  BatchPlan Plan() { return h.All<RunDecodePass>().at(0).plan; }

  DecodeUpdate Update() {
    const auto updates = h.All<SendUpdate>();
    EXPECT_EQ(updates.size(), 1u);
    return updates.empty() ? DecodeUpdate() : updates[0].update;
  }

  RequestEnd OnlyEnd() {
    const DecodeUpdate update = Update();
    EXPECT_EQ(update.ends.size(), 1u);
    return update.ends.empty() ? RequestEnd() : update.ends[0];
  }

  DecodeHarness h;
  std::map<uint64_t, Epoch> epochs;
};

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
  DecodePlannerOptions options = SmallOptions();
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
