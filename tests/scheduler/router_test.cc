// The router: dispatch, admission, tokens.

#include "tests/scheduler/router_fixture.h"

#include "gtest/gtest.h"

namespace baton::scheduler {
namespace {

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

}  // namespace
}  // namespace baton::scheduler
