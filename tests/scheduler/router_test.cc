#include "scheduler/router.h"

#include <utility>

#include "gtest/gtest.h"
#include "tests/scheduler/harness.h"

namespace baton::scheduler {
namespace {

constexpr WorkerId kDecodeA(1), kDecodeB(2), kPrefillA(11), kPrefillB(12);

RouterOptions SmallOptions() {
  RouterOptions options;
  options.max_queued = 4;
  options.max_attempts = 3;
  options.max_requeues = 5;
  options.max_overtakes = 2;
  options.reserve_output_tokens = 1;
  options.no_workers_timeout = Duration::Millis(1'000);
  options.release_timeout = Duration::Millis(500);
  options.requeue_backoff = Duration::Millis(1);
  options.max_requeue_backoff = Duration::Millis(4);
  options.suspect_period = Duration::Millis(100);
  return options;
}

WorkerIdentity Identity(const char* role) {
  WorkerIdentity identity;
  identity.role = role;
  identity.instance = "x";
  identity.model_hash = "h";
  identity.page_tokens = 4;
  return identity;
}

class RouterTest : public testing::Test {
 protected:
  static DecodeStatus Decode(uint64_t credits = 10, int32_t free_pages = 20) {
    DecodeStatus status;
    status.credits_granted = credits;
    status.total_pages = 20;
    status.free_pages = free_pages;
    return status;
  }
  static PrefillStatus Prefill(int32_t slots = 4, int64_t queued = 0) {
    PrefillStatus status;
    status.total_pages = 20;
    status.free_pages = 20;
    status.slots = slots;
    status.queued_tokens = queued;
    return status;
  }
  static RouterEvent Join(WorkerId worker, DecodeStatus status = Decode()) {
    return DecodeJoined{worker, Identity("decode"), status};
  }
  static RouterEvent Join(WorkerId worker, PrefillStatus status) {
    return PrefillJoined{worker, worker == kPrefillA ? "pa" : "pb", Identity("prefill"), status};
  }
  Arrived Arrive(uint64_t id, int prompt = 4, int max_tokens = 10) {
    Arrived arrived;
    arrived.id = RequestId(id);
    arrived.prompt.assign(static_cast<size_t>(prompt), 3);
    arrived.sampling.max_tokens = max_tokens;
    arrived.arrived_at = h.now;
    arrived.deadline = h.now + Duration::Seconds(60);
    return arrived;
  }

  void JoinPair() { h.Step({Join(kDecodeA), Join(kPrefillA, Prefill())}); }

  static TokenChunk Chunk(RequestKey key, int first, std::vector<TokenId> tokens) {
    TokenChunk chunk;
    chunk.key = key;
    chunk.first_index = first;
    chunk.has_first_token_timings = first == 0;
    for (const TokenId token : tokens) chunk.tokens.push_back({key, token, 0, {}});
    return chunk;
  }
  static RequestEnd End(RequestKey key, EndKind kind, absl::Status status = absl::OkStatus()) {
    RequestEnd end;
    end.key = key;
    end.kind = kind;
    end.status = std::move(status);
    if (kind == EndKind::kFinished) end.reason = FinishReason::kLength;
    return end;
  }
  // An update of rank A that has seen every start.
  RouterEvent Update(std::vector<TokenChunk> chunks, std::vector<RequestEnd> ends = {},
                     std::vector<RequestKey> released = {}, WorkerId worker = kDecodeA) {
    DecodeUpdated event;
    event.worker = worker;
    event.update.chunks = std::move(chunks);
    event.update.ends = std::move(ends);
    event.update.released = std::move(released);
    event.update.status = Decode();
    event.update.status.starts_received = 1000;
    event.update.status.credits_granted = 1010;
    event.received_at = h.now;
    return event;
  }

  SendStart OnlyStart() {
    const auto starts = h.All<SendStart>();
    EXPECT_EQ(starts.size(), 1u);
    return starts.empty() ? SendStart() : starts[0];
  }
  RequestResult OnlyResult() {
    const auto results = h.All<RequestResult>();
    EXPECT_EQ(results.size(), 1u);
    return results.empty() ? RequestResult() : results[0];
  }

  static RequestKey Key(uint64_t request, uint32_t attempt = 0) {
    return {RequestId(request), attempt};
  }

  Harness<Router, RouterEvent, RouterActionSink> h{SmallOptions()};
};

// --- dispatch

TEST_F(RouterTest, RequestWaitsForAPairOfWorkers) {
  h.Step({Arrive(1)});
  h.Step({Join(kDecodeA)});
  EXPECT_TRUE(h.All<SendStart>().empty());
  h.Step({Join(kPrefillA, Prefill())});
  EXPECT_EQ(OnlyStart().decode, kDecodeA);
  EXPECT_EQ(OnlyStart().request.prefill_address, "pa");
  EXPECT_EQ(OnlyStart().request.key, Key(1));
}

TEST_F(RouterTest, EveryStartSpendsACredit) {
  h.Step({Join(kDecodeA, Decode(2)), Join(kPrefillA, Prefill())});
  h.Step({Arrive(1), Arrive(2), Arrive(3)});
  EXPECT_EQ(h.All<SendStart>().size(), 2u);
  EXPECT_EQ(h.sink.report.queued, 1);
  DecodeUpdated more;
  more.worker = kDecodeA;
  more.update.status = Decode(3);
  h.Step({more});
  EXPECT_EQ(OnlyStart().request.key, Key(3));
}

TEST_F(RouterTest, StartsOnTheirWayCountAgainstFreePages) {
  h.Step({Join(kDecodeA, Decode(10, 5)), Join(kPrefillA, Prefill())});
  h.Step({Arrive(1, 12), Arrive(2, 12)});  // 3 pages each
  EXPECT_EQ(OnlyStart().request.key, Key(1));
  // An update from before the start changes nothing; one after it shows what is really free.
  DecodeUpdated old;
  old.worker = kDecodeA;
  old.update.status = Decode(10, 5);
  h.Step({old});
  EXPECT_TRUE(h.All<SendStart>().empty());
  old.update.status.starts_received = 1;
  h.Step({old});
  EXPECT_EQ(OnlyStart().request.key, Key(2));
}

TEST_F(RouterTest, PrefillSlotsAndPagesBoundTheStarts) {
  h.Step({Join(kDecodeA), Join(kPrefillA, Prefill(2))});
  h.Step({Arrive(1), Arrive(2), Arrive(3)});
  EXPECT_EQ(h.All<SendStart>().size(), 2u);
  // The first token frees the slot.
  h.Step({Update({Chunk(Key(1), 0, {5})})});
  EXPECT_EQ(OnlyStart().request.key, Key(3));
}

TEST_F(RouterTest, EmptierRankAndCheaperPrefillArePreferred) {
  h.Step({Join(kDecodeA, Decode(10, 10)), Join(kDecodeB, Decode(10, 15)),
          Join(kPrefillA, Prefill(4, 500)), Join(kPrefillB, Prefill(4, 100))});
  h.Step({Arrive(1)});
  EXPECT_EQ(OnlyStart().decode, kDecodeB);
  EXPECT_EQ(OnlyStart().request.prefill_address, "pb");
}

TEST_F(RouterTest, LoadSpreadsOverEqualWorkers) {
  h.Step({Join(kDecodeA), Join(kDecodeB), Join(kPrefillA, Prefill()), Join(kPrefillB, Prefill())});
  h.Step({Arrive(1), Arrive(2)});
  const auto starts = h.All<SendStart>();
  ASSERT_EQ(starts.size(), 2u);
  EXPECT_NE(starts[0].decode, starts[1].decode);
  EXPECT_NE(starts[0].request.prefill_address, starts[1].request.prefill_address);
}

TEST_F(RouterTest, DrainingWorkersGetNothing) {
  DecodeStatus draining = Decode();
  draining.draining = true;
  h.Step({Join(kDecodeA, draining), Join(kDecodeB), Join(kPrefillA, Prefill())});
  h.Step({Arrive(1), Arrive(2)});
  for (const SendStart& start : h.All<SendStart>()) EXPECT_EQ(start.decode, kDecodeB);
}

TEST_F(RouterTest, HeadOfTheQueueIsOvertakenOnlySoOften) {
  h.Step({Join(kDecodeA, Decode(100, 5)), Join(kPrefillA, Prefill(10))});
  h.Step({Arrive(1, 40)});  // 10 pages, has to wait
  EXPECT_TRUE(h.All<SendStart>().empty());
  uint64_t id = 2;
  int overtook = 0;
  for (int i = 0; i < 4; ++i) {
    DecodeUpdated fresh;
    fresh.worker = kDecodeA;
    fresh.update.status = Decode(100, 5);
    fresh.update.status.starts_received = 100;
    h.Step({fresh, Arrive(id++)});
    overtook += static_cast<int>(h.All<SendStart>().size());
  }
  EXPECT_EQ(overtook, 2);
  // Once it fits it goes first, and those behind it follow.
  h.Step({Update({})});
  ASSERT_GE(h.All<SendStart>().size(), 1u);
  EXPECT_EQ(h.All<SendStart>()[0].request.key, Key(1));
}

// --- admission

TEST_F(RouterTest, FullQueueRefusesWithAHint) {
  for (uint64_t id = 1; id <= 4; ++id) h.Step({Arrive(id)});
  h.Step({Arrive(5)});
  EXPECT_EQ(OnlyResult().id, RequestId(5));
  EXPECT_EQ(OnlyResult().status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_GT(OnlyResult().retry_after, Duration());
  EXPECT_EQ(h.sink.report.refused_full, 1u);
}

TEST_F(RouterTest, RequestThatFitsNoWorkerIsInvalid) {
  JoinPair();
  h.Step({Arrive(1, 70, 20)});  // 89 tokens, 23 pages of 20
  EXPECT_EQ(OnlyResult().status.code(), absl::StatusCode::kInvalidArgument);
  h.Step({Arrive(2, 90, 1)});
  EXPECT_EQ(OnlyResult().status.code(), absl::StatusCode::kInvalidArgument);
  h.Step({Arrive(3, 70, 11)});  // 80 tokens fit exactly
  EXPECT_EQ(h.All<SendStart>().size(), 1u);
}

TEST_F(RouterTest, RequestFromBeforeTheWorkersIsCheckedWhenTheyJoin) {
  h.Step({Arrive(1, 70, 20)});
  EXPECT_TRUE(h.All<RequestResult>().empty());
  JoinPair();
  EXPECT_EQ(OnlyResult().status.code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(RouterTest, WithoutWorkersRequestsEndAfterAWhile) {
  h.Step({Join(kDecodeA)});
  h.StepAfter(Duration::Millis(100), {Arrive(1)});
  EXPECT_EQ(h.decider.NextWake(), h.now + Duration::Millis(1'000));
  h.StepAfter(Duration::Millis(999));
  EXPECT_TRUE(h.All<RequestResult>().empty());
  h.StepAfter(Duration::Millis(1));
  EXPECT_EQ(OnlyResult().status.code(), absl::StatusCode::kUnavailable);
}

TEST_F(RouterTest, MismatchedWorkerIsRefused) {
  JoinPair();
  WorkerIdentity other = Identity("decode");
  other.model_hash = "another";
  h.Step({DecodeJoined{kDecodeB, other, Decode()}});
  ASSERT_EQ(h.All<RefuseWorker>().size(), 1u);
  EXPECT_EQ(h.All<RefuseWorker>()[0].worker, kDecodeB);
  EXPECT_EQ(h.sink.report.decode_ranks, 1);
  WorkerIdentity no_pages = Identity("prefill");
  no_pages.page_tokens = 0;
  h.Step({PrefillJoined{kPrefillB, "pb", no_pages, Prefill()}});
  EXPECT_EQ(h.All<RefuseWorker>().size(), 1u);
}

TEST_F(RouterTest, EveryDeadlineIsFinite) {
  JoinPair();
  Arrived arrived = Arrive(1);
  arrived.deadline = Tick::Infinite();
  h.Step({arrived});
  EXPECT_EQ(OnlyStart().request.remaining, RouterOptions().max_duration);
}

// --- tokens

TEST_F(RouterTest, TokensReachTheClientOnceAndInOrder) {
  JoinPair();
  h.Step({Arrive(1)});
  h.Step({Update({Chunk(Key(1), 0, {5}), Chunk(Key(1), 1, {6, 7})})});
  const auto emitted = h.All<EmitTokens>();
  ASSERT_EQ(emitted.size(), 2u);
  EXPECT_EQ(emitted[0].first_index, 0);
  EXPECT_EQ(emitted[1].first_index, 1);
  // A repeat of what is known is swallowed, its new tail delivered.
  h.Step({Update({Chunk(Key(1), 1, {6, 7, 8})})});
  ASSERT_EQ(h.All<EmitTokens>().size(), 1u);
  EXPECT_EQ(h.All<EmitTokens>()[0].first_index, 3);
  EXPECT_EQ(h.All<EmitTokens>()[0].tokens.at(0).token, 8);
  EXPECT_EQ(h.sink.report.duplicate_tokens, 2u);
}

TEST_F(RouterTest, ContradictingTokenFailsTheRequest) {
  JoinPair();
  h.Step({Arrive(1)});
  h.Step({Update({Chunk(Key(1), 0, {5})})});
  h.Step({Update({Chunk(Key(1), 0, {6})})});
  EXPECT_EQ(OnlyResult().status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(h.All<SendCancel>().size(), 1u);
  EXPECT_TRUE(h.All<EmitTokens>().empty());
}

TEST_F(RouterTest, GapInTheTokensFailsTheRequest) {
  JoinPair();
  h.Step({Arrive(1)});
  h.Step({Update({Chunk(Key(1), 1, {5})})});
  EXPECT_EQ(OnlyResult().status.code(), absl::StatusCode::kInternal);
}

TEST_F(RouterTest, MoreTokensThanAskedForFailTheRequest) {
  JoinPair();
  h.Step({Arrive(1, 4, 2)});
  h.Step({Update({Chunk(Key(1), 0, {5, 6, 7})})});
  EXPECT_EQ(OnlyResult().status.code(), absl::StatusCode::kInternal);
}

TEST_F(RouterTest, StagesAddUpToTheTimeToTheFirstToken) {
  h.Step({Arrive(1)});
  h.now = h.now + Duration::Millis(7);
  JoinPair();
  h.now = h.now + Duration::Millis(20);
  TokenChunk chunk = Chunk(Key(1), 0, {5});
  chunk.timings.prefill_wait = Duration::Millis(1);
  chunk.timings.prefill = Duration::Millis(9);
  chunk.timings.transfer_exposed = Duration::Millis(4);
  h.Step({Update({chunk}, {End(Key(1), EndKind::kFinished)}, {Key(1)})});
  const RequestResult result = OnlyResult();
  EXPECT_TRUE(result.status.ok());
  EXPECT_EQ(result.ttft, Duration::Millis(27));
  EXPECT_EQ(result.stages.queue, Duration::Millis(7));
  EXPECT_EQ(result.stages.prefill_wait, Duration::Millis(1));
  EXPECT_EQ(result.stages.prefill, Duration::Millis(9));
  EXPECT_EQ(result.stages.transfer_exposed, Duration::Millis(4));
  EXPECT_EQ(result.stages.decode_wait, Duration::Millis(6));
  EXPECT_EQ(result.stages.Total(), result.ttft);
}

TEST_F(RouterTest, StagesAddUpEvenWhenAWorkersClockRunsFast) {
  JoinPair();
  h.Step({Arrive(1)});
  h.now = h.now + Duration::Millis(10);
  TokenChunk chunk = Chunk(Key(1), 0, {5});
  chunk.timings.prefill = Duration::Millis(500);
  chunk.timings.transfer_exposed = Duration::Millis(-3);
  h.Step({Update({chunk}, {End(Key(1), EndKind::kFinished)})});
  EXPECT_EQ(OnlyResult().ttft, Duration::Millis(10));
  EXPECT_EQ(OnlyResult().stages.Total(), OnlyResult().ttft);
}

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
