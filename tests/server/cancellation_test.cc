// A client that leaves, or whose deadline passes, in each phase of its request: both workers let go
// of its pages, and of nothing else. The wires between the roles are real; gates and a transport
// that holds messages back keep a request in its phase.

#include <grpc/support/time.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <utility>

#include "tests/server/stub_cluster.h"
#include "transport/faulty/faulty_transport.h"

namespace baton::server {
namespace {

gpr_timespec InMillis(int64_t ms) {
  return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(ms, GPR_TIMESPAN));
}

grpc::StatusCode EndOf(grpc::ClientReader<v1::GenerateResponse>& reader) {
  v1::GenerateResponse response;
  while (reader.Read(&response)) {
  }
  return reader.Finish().error_code();
}

class CancellationTest : public ::testing::Test {
 protected:
  // Timeouts that are never the reason why something is freed.
  static EmbeddedParts PatientParts(Gate& prefill, Gate& decode) {
    EmbeddedParts parts = StubParts(prefill, decode);
    parts.prefill.planner.handoff_timeout = kForever;
    parts.decode.planner.handoff_timeout = kForever;
    parts.decode.planner.prefill_timeout = kForever;
    return parts;
  }
  void Start(EmbeddedParts parts) { cluster_ = std::make_unique<StubCluster>(std::move(parts)); }

  void TearDown() override {
    prefill_gate_.Open();
    decode_gate_.Open();
    ExpectNothingHeld();
  }
  void ExpectNothingHeld() {
    EXPECT_TRUE(cluster_->WaitForMetric(kDecodePages, 0));
    EXPECT_TRUE(cluster_->WaitForMetric(kPrefillPages, 0));
    EXPECT_TRUE(cluster_->WaitForMetric("baton_inflight_requests", 0));
    EXPECT_TRUE(cluster_->WaitForMetric("baton_landing_requests", 0));
  }
  double Ended(const char* outcome) {
    return cluster_->Metric(std::string("baton_requests_total{outcome=\"") + outcome + "\"}");
  }
  // What is counted just after the client was told.
  void ExpectCancelled() {
    EXPECT_TRUE(cluster_->WaitFor([&] { return Ended("cancelled") == 1; }));
  }
  // The client's library hangs up when its clock says so: to the server that is a cancel, unless
  // its own clock was first.
  void ExpectExpired() {
    EXPECT_TRUE(
        cluster_->WaitFor([&] { return Ended("deadline_exceeded") + Ended("cancelled") == 1; }));
  }

  static constexpr Duration kForever = Duration::Seconds(3600);
  Gate prefill_gate_, decode_gate_;
  std::unique_ptr<StubCluster> cluster_;
};

// The queue holds what finds no prefill slot: here, all but one request.
class QueuedTest : public CancellationTest {
 protected:
  QueuedTest() {
    EmbeddedParts parts = PatientParts(prefill_gate_, decode_gate_);
    parts.prefill.planner.slots = 1;
    Start(std::move(parts));
    prefill_gate_.Close();
    first_ = cluster_->stub().Generate(&first_context_, Endless(40, 5));
    prefill_gate_.WaitForPasses(1);
    EXPECT_TRUE(cluster_->WaitFor([&] { return cluster_->Metric(kDecodePages) > 0; }));
    decode_pages_ = cluster_->Metric(kDecodePages);
  }
  // The first request has what it had, and ends well.
  void ExpectTheFirstUntouched() {
    EXPECT_TRUE(cluster_->WaitForMetric("baton_router_queue_requests", 0));
    EXPECT_EQ(cluster_->Metric(kDecodePages), decode_pages_);
    prefill_gate_.Open();
    EXPECT_EQ(EndOf(*first_), grpc::StatusCode::OK);
  }

  grpc::ClientContext first_context_;
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> first_;
  double decode_pages_ = 0;
};

TEST_F(QueuedTest, CancelLeavesTheQueue) {
  grpc::ClientContext context;
  const auto second = cluster_->stub().Generate(&context, Endless(300, 5));
  ASSERT_TRUE(cluster_->WaitForMetric("baton_router_queue_requests", 1));
  context.TryCancel();
  EXPECT_EQ(EndOf(*second), grpc::StatusCode::CANCELLED);
  ExpectTheFirstUntouched();
  ExpectCancelled();
}

TEST_F(QueuedTest, TheClientsDeadlineEndsTheWait) {
  grpc::ClientContext context;
  context.set_deadline(InMillis(300));
  const auto second = cluster_->stub().Generate(&context, Endless(300, 5));
  EXPECT_EQ(EndOf(*second), grpc::StatusCode::DEADLINE_EXCEEDED);
  ExpectTheFirstUntouched();
  ExpectExpired();
}

// Without a deadline of the client's, the server's default is the limit, and its own words.
TEST_F(CancellationTest, TheServersDeadlineEndsTheWait) {
  EmbeddedParts parts = PatientParts(prefill_gate_, decode_gate_);
  parts.prefill.planner.slots = 1;
  parts.router.frontend.default_duration = Duration::Millis(100);
  Start(std::move(parts));
  prefill_gate_.Close();
  grpc::ClientContext first_context, second_context;
  const auto first = cluster_->stub().Generate(&first_context, Endless(40, 5));
  prefill_gate_.WaitForPasses(1);
  const auto second = cluster_->stub().Generate(&second_context, Endless(300, 5));
  EXPECT_EQ(EndOf(*second), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(EndOf(*first), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(cluster_->WaitFor([&] { return Ended("deadline_exceeded") == 2; }));
}

TEST_F(CancellationTest, WhilePrefilling) {
  Start(PatientParts(prefill_gate_, decode_gate_));
  prefill_gate_.Close();
  grpc::ClientContext context;
  const auto reader = cluster_->stub().Generate(&context, Endless(300, 10));
  prefill_gate_.WaitForPasses(1);
  context.TryCancel();
  EXPECT_EQ(EndOf(*reader), grpc::StatusCode::CANCELLED);
}

TEST_F(CancellationTest, TheClientsDeadlineWhilePrefilling) {
  Start(PatientParts(prefill_gate_, decode_gate_));
  prefill_gate_.Close();
  grpc::ClientContext context;
  context.set_deadline(InMillis(300));
  const auto reader = cluster_->stub().Generate(&context, Endless(300, 10));
  prefill_gate_.WaitForPasses(1);
  EXPECT_EQ(EndOf(*reader), grpc::StatusCode::DEADLINE_EXCEEDED);
  ExpectExpired();
}

// The prompt is computed; its latents are on their way for the next hour.
TEST_F(CancellationTest, DuringTheHandoff) {
  EmbeddedParts parts = PatientParts(prefill_gate_, decode_gate_);
  transport::FaultyOptions slow;
  slow.rates.delay = 1;
  slow.clock = std::make_shared<MonotonicClock>();
  slow.max_delay = kForever;
  parts.prefill_ranks[0].transport = std::make_unique<transport::FaultyTransport>(
      std::move(parts.prefill_ranks[0].transport), slow);
  parts.prefill_poll_interval = Duration::Millis(1);
  Start(std::move(parts));
  grpc::ClientContext context;
  const auto reader = cluster_->stub().Generate(&context, Endless(300, 10));
  ASSERT_TRUE(cluster_->WaitForMetric("baton_prefill_tokens_total", 300));
  ASSERT_TRUE(cluster_->WaitForMetric("baton_landing_requests", 1));
  EXPECT_GT(cluster_->Metric(kDecodePages), 0);
  context.TryCancel();
  EXPECT_EQ(EndOf(*reader), grpc::StatusCode::CANCELLED);
  ExpectNothingHeld();
  ExpectCancelled();
}

// The prompt is computed but for its last chunk: part of the latents have been sent.
TEST_F(CancellationTest, BetweenTheChunksOfAHandoff) {
  Start(PatientParts(prefill_gate_, decode_gate_));
  prefill_gate_.Close();
  grpc::ClientContext context;
  const auto reader = cluster_->stub().Generate(&context, Endless(300, 10));
  prefill_gate_.WaitForPasses(1);
  prefill_gate_.LetThrough(2);
  prefill_gate_.WaitForPasses(3);
  ASSERT_TRUE(cluster_->WaitFor(
      [&] { return cluster_->Metric("baton_handoff_received_messages_total") > 0; }));
  context.TryCancel();
  EXPECT_EQ(EndOf(*reader), grpc::StatusCode::CANCELLED);
  prefill_gate_.Open();
  ExpectNothingHeld();
}

TEST_F(CancellationTest, WhileDecoding) {
  Start(PatientParts(prefill_gate_, decode_gate_));
  decode_gate_.Close();  // the first token comes from prefill
  grpc::ClientContext context;
  const auto reader = cluster_->stub().Generate(&context, Endless(40, 900));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  decode_gate_.WaitForPasses(1);
  EXPECT_TRUE(cluster_->WaitFor([&] { return cluster_->Metric(kDecodePages) > 0; }));
  context.TryCancel();
  decode_gate_.Open();
  EXPECT_EQ(EndOf(*reader), grpc::StatusCode::CANCELLED);
  ExpectCancelled();
}

}  // namespace
}  // namespace baton::server
