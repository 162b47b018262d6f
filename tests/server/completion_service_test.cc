// The whole stack but for the model: gRPC in, router, prefill, hand-off, decode, gRPC out.

#include <gmock/gmock.h>
#include <grpc/support/time.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <string>

#include "base/thread.h"
#include "server/grpc_host.h"
#include "server/retry_hint.h"
#include "tests/server/stub_cluster.h"

namespace baton::server {
namespace {

using ::testing::ElementsAreArray;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class CompletionServiceTest : public ::testing::Test {
 protected:
  void TearDown() override {
    cluster_.prefill_gate.Open();
    cluster_.decode_gate.Open();
    // Whatever a test did, nothing may be left behind.
    EXPECT_TRUE(cluster_.WaitForMetric(kDecodePages, 0));
    EXPECT_TRUE(cluster_.WaitForMetric(kPrefillPages, 0));
    EXPECT_TRUE(cluster_.WaitForMetric("baton_inflight_requests", 0));
  }
  StubCluster cluster_;
};

TEST_F(CompletionServiceTest, StreamsExactlyTheModelsTokens) {
  for (const int32_t length : {1, 15, 16, 17, 63, 64, 65, 200}) {
    SCOPED_TRACE(length);
    const v1::GenerateRequest request = IdRequest(Prompt(length), 40, 11);
    const Streamed out = Generate(cluster_.stub(), request);
    ASSERT_TRUE(out.status.ok()) << out.status.error_message();
    const sim::OracleOutput expected = Expected(request);
    EXPECT_THAT(out.ids, ElementsAreArray(expected.tokens));
    ASSERT_TRUE(out.has_finished);
    EXPECT_EQ(out.finished.reason(), expected.reason == scheduler::FinishReason::kStop
                                         ? v1::FINISH_REASON_STOP
                                         : v1::FINISH_REASON_LENGTH);
    EXPECT_EQ(out.finished.usage().prompt_tokens(), length);
    EXPECT_EQ(out.finished.usage().completion_tokens(),
              static_cast<int32_t>(expected.tokens.size()));
    EXPECT_EQ(out.finished.seed(), 11u);
    EXPECT_EQ(out.text, *ByteTokenizer()->Decode(expected.tokens, true));
  }
}

TEST_F(CompletionServiceTest, ManyAtOnceGetTheirOwnTokens) {
  std::vector<Thread> threads;
  for (uint64_t i = 0; i < 16; ++i) {
    threads.emplace_back("client", [this, i] {
      for (uint64_t j = 0; j < 5; ++j) {
        const v1::GenerateRequest request =
            IdRequest(Prompt(static_cast<int32_t>(1 + 7 * i), i), 30, 100 * i + j);
        const Streamed out = Generate(cluster_.stub(), request);
        EXPECT_TRUE(out.status.ok()) << out.status.error_message();
        EXPECT_THAT(out.ids, ElementsAreArray(Expected(request).tokens));
      }
    });
  }
}

TEST_F(CompletionServiceTest, CompleteIsTheSameInOnePiece) {
  v1::GenerateRequest request = IdRequest(Prompt(20), 30, 8);
  request.set_request_id("mine");
  grpc::ClientContext context;
  v1::CompleteResponse response;
  const grpc::Status status = cluster_.stub().Complete(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  const Streamed streamed = Generate(cluster_.stub(), request);
  EXPECT_EQ(response.request_id(), "mine");
  EXPECT_EQ(streamed.request_id, "mine");
  EXPECT_EQ(response.completion().text(), streamed.text);
  EXPECT_THAT(response.completion().token_ids(), ElementsAreArray(streamed.ids));
  EXPECT_EQ(response.finished().usage().completion_tokens(),
            static_cast<int32_t>(streamed.ids.size()));
}

TEST_F(CompletionServiceTest, UsageSaysHowMuchOfThePromptWasCached) {
  v1::GenerateRequest request = Endless(100, 5);
  const auto cached = [&] {
    const Streamed out = Generate(cluster_.stub(), request);
    EXPECT_TRUE(out.status.ok());
    return out.finished.usage().prompt_tokens_details().cached_tokens();
  };
  EXPECT_EQ(cached(), 0);
  EXPECT_EQ(cached(), 99 / sim::kPageTokens * sim::kPageTokens);
  request.set_cache_salt("tenant");
  EXPECT_EQ(cached(), 0);
}

TEST_F(CompletionServiceTest, StagesOfTheFirstTokenAddUp) {
  const Streamed out = Generate(cluster_.stub(), Endless(100, 5));
  ASSERT_TRUE(out.status.ok());
  const v1::Timings& t = out.finished.timings();
  EXPECT_NEAR(t.queue_ms() + t.prefill_wait_ms() + t.prefill_ms() + t.transfer_exposed_ms() +
                  t.decode_wait_ms(),
              t.first_token_ms(), 1e-6);
  EXPECT_GT(t.prefill_ms(), 0);
  EXPECT_GE(t.total_ms(), t.first_token_ms());
  // And in the metrics, which are written when the client has been told.
  ASSERT_TRUE(cluster_.WaitForMetric("baton_tpot_seconds_count", 1));
  double stages = 0;
  for (const char* stage :
       {"queue", "prefill_wait", "prefill", "transfer_exposed", "decode_wait"}) {
    stages += cluster_.Metric(std::string("baton_ttft_stage_seconds_sum{stage=\"") + stage + "\"}");
  }
  EXPECT_NEAR(stages, cluster_.Metric("baton_ttft_seconds_sum"), 1e-6);
  EXPECT_EQ(cluster_.Metric("baton_ttft_seconds_count"), 1);
  EXPECT_EQ(cluster_.Metric("baton_itl_seconds_count"), 4);
  EXPECT_EQ(cluster_.Metric("baton_tpot_seconds_count"), 1);
  EXPECT_EQ(cluster_.Metric("baton_output_tokens_total"), 5);
  EXPECT_EQ(cluster_.Metric("baton_prompt_tokens_total"), 100);
}

TEST_F(CompletionServiceTest, StopStringsEndTheText) {
  v1::GenerateRequest request = Endless(10, 60);
  const std::string whole = Generate(cluster_.stub(), request).text;
  // Three letters that come one after the other, somewhere behind the beginning.
  const auto letter = [](char c) { return c >= 'a' && c <= 'z'; };
  size_t at = 8;
  while (at + 3 < whole.size() &&
         !(letter(whole[at]) && letter(whole[at + 1]) && letter(whole[at + 2]))) {
    ++at;
  }
  ASSERT_LT(at + 3, whole.size());
  const std::string stop = whole.substr(at, 3);
  request.add_stop(stop);
  const Streamed out = Generate(cluster_.stub(), request);
  ASSERT_TRUE(out.status.ok()) << out.status.error_message();
  EXPECT_EQ(out.text, whole.substr(0, whole.find(stop)));
  EXPECT_EQ(out.finished.reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(out.finished.stop_string(), stop);
  EXPECT_EQ(out.finished.usage().completion_tokens(), static_cast<int32_t>(out.ids.size()));
  EXPECT_TRUE(cluster_.WaitForMetric("baton_requests_total{outcome=\"stop\"}", 1));
}

TEST_F(CompletionServiceTest, StopIdsEndItAndAreNotPartOfIt) {
  v1::GenerateRequest request = Endless(10, 60);
  request.add_stop_token_ids(Generate(cluster_.stub(), request).ids[20]);
  const Streamed out = Generate(cluster_.stub(), request);
  EXPECT_THAT(out.ids, ElementsAreArray(Expected(request).tokens));
  EXPECT_LE(out.ids.size(), 20u);
  EXPECT_EQ(out.finished.reason(), v1::FINISH_REASON_STOP);
}

TEST_F(CompletionServiceTest, BadRequestsAreRefusedByField) {
  v1::GenerateRequest request = Endless(10, 10);
  request.mutable_sampling()->set_top_p(7);
  const Streamed bad = Generate(cluster_.stub(), request);
  EXPECT_EQ(bad.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(bad.status.error_message(), HasSubstr("sampling.top_p is 7, must be in (0, 1]"));
  request = Endless(10, 10);
  request.set_model("other");
  EXPECT_EQ(Generate(cluster_.stub(), request).status.error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(CompletionServiceTest, LogprobsComeWithTheirTokens) {
  v1::GenerateRequest request = Endless(10, 5);
  request.set_top_logprobs(0);
  const Streamed out = Generate(cluster_.stub(), request);
  ASSERT_TRUE(out.status.ok());
  for (const v1::Chunk& chunk : out.chunks) {
    ASSERT_EQ(chunk.logprobs_size(), chunk.token_ids_size());
    for (int i = 0; i < chunk.token_ids_size(); ++i) {
      EXPECT_EQ(chunk.logprobs(i).chosen().token_id(), chunk.token_ids(i));
    }
  }
}

TEST_F(CompletionServiceTest, TokenizesAndDetokenizes) {
  v1::TokenizeRequest tokenize;
  tokenize.set_text("abc");
  v1::TokenizeResponse ids;
  grpc::ClientContext one;
  ASSERT_TRUE(cluster_.stub().Tokenize(&one, tokenize, &ids).ok());
  EXPECT_THAT(ids.ids(), ::testing::ElementsAre(1, 2, 3));
  v1::DetokenizeRequest detokenize;
  *detokenize.mutable_ids() = ids.ids();
  v1::DetokenizeResponse text;
  grpc::ClientContext two;
  ASSERT_TRUE(cluster_.stub().Detokenize(&two, detokenize, &text).ok());
  EXPECT_EQ(text.text(), "abc");
  detokenize.add_ids(100'000);
  grpc::ClientContext three;
  EXPECT_EQ(cluster_.stub().Detokenize(&three, detokenize, &text).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(CompletionServiceTest, SaysWhatItServes) {
  grpc::ClientContext one;
  v1::GetModelInfoResponse model;
  ASSERT_TRUE(cluster_.stub().GetModelInfo(&one, {}, &model).ok());
  EXPECT_EQ(model.name(), "stub");
  EXPECT_EQ(model.context_tokens(), sim::kMaxPositions);
  EXPECT_TRUE(model.has_chat_template());
  grpc::ClientContext two;
  v1::GetServerInfoResponse server;
  ASSERT_TRUE(cluster_.stub().GetServerInfo(&two, {}, &server).ok());
  EXPECT_TRUE(server.ready());
  EXPECT_EQ(server.revision(), "test");
  ASSERT_EQ(server.workers_size(), 2);
  for (const v1::WorkerInfo& worker : server.workers()) {
    EXPECT_TRUE(worker.connected());
    EXPECT_EQ(worker.total_pages(), 64);
  }
}

TEST_F(CompletionServiceTest, DrainRefusesNewWorkAndFinishesTheOld) {
  cluster_.decode_gate.Close();  // the first token comes from prefill
  grpc::ClientContext context;
  const v1::GenerateRequest request = Endless(40, 200);
  const auto reader = cluster_.stub().Generate(&context, request);
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  std::vector<TokenId> ids(response.chunk().token_ids().begin(),
                           response.chunk().token_ids().end());
  cluster_.embedded->Drain();
  // The drain is asked for; until the router has seen it a request may still be taken.
  EXPECT_TRUE(cluster_.WaitFor([&] { return cluster_.embedded->Summary().draining; }));
  const Streamed refused = Generate(cluster_.stub(), Endless(10, 5));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_FALSE(cluster_.embedded->drained());
  cluster_.decode_gate.Open();
  while (reader->Read(&response)) {
    if (!response.has_chunk()) continue;
    ids.insert(ids.end(), response.chunk().token_ids().begin(), response.chunk().token_ids().end());
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_THAT(ids, ElementsAreArray(Expected(request).tokens));
  EXPECT_TRUE(cluster_.WaitFor([&] { return cluster_.embedded->drained(); }));
}

TEST(CompletionServiceLimits, AFullServerRefusesWithAHint) {
  Gate prefill, decode;
  EmbeddedParts parts = StubParts(prefill, decode);
  parts.router.frontend.max_open_requests = 1;
  StubCluster cluster(std::move(parts));
  prefill.Close();
  grpc::ClientContext context;
  const auto reader = cluster.stub().Generate(&context, Endless(40, 5));
  prefill.WaitForPasses(1);
  const Streamed refused = Generate(cluster.stub(), Endless(10, 5));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(refused.retry_after, "500");
  EXPECT_EQ(RetryAfter(refused.status), Duration::Millis(500));
  prefill.Open();
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
  }
  EXPECT_TRUE(reader->Finish().ok());
}

// Byte by byte what google.rpc.Status and RetryInfo are on the wire, so that every client's library
// reads it.
TEST(RetryHint, IsSpelledAsGooglesMessages) {
  const std::string url = "type.googleapis.com/google.rpc.RetryInfo";
  ASSERT_EQ(url.size(), 0x28u);
  const std::string delay("\x0a\x08\x08\x01\x10\x80\xca\xb5\xee\x01", 10);  // 1 s, 500000000 ns
  const std::string any = "\x0a\x28" + url + "\x12\x0a" + delay;
  const std::string expected = std::string("\x08\x08\x12\x04") + "full" + "\x1a\x36" + any;
  EXPECT_EQ(RetryDetails(absl::ResourceExhaustedError("full"), Duration::Millis(1500)), expected);
  const grpc::Status status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full", expected);
  EXPECT_EQ(RetryAfter(status), Duration::Millis(1500));
  EXPECT_EQ(RetryAfter(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full")), Duration());
}

TEST(CompletionServiceLimits, ASlowReaderHoldsNobodyBackAndGetsEverything) {
  Gate prefill, decode;
  StubCluster cluster(StubParts(prefill, decode));
  grpc::ClientContext context;
  const v1::GenerateRequest slow = Endless(40, 400);
  const auto reader = cluster.stub().Generate(&context, slow);
  // Nothing is read meanwhile.
  ASSERT_TRUE(cluster.WaitForMetric("baton_requests_total{outcome=\"length\"}", 1));
  EXPECT_TRUE(Generate(cluster.stub(), Endless(10, 50)).status.ok());
  std::vector<TokenId> ids;
  int chunks = 0;
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
    ++chunks;
    ids.insert(ids.end(), response.chunk().token_ids().begin(), response.chunk().token_ids().end());
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_THAT(ids, ElementsAreArray(Expected(slow).tokens));
}

// --- what is asked of any gRPC server, over a real port

class OverTcp : public ::testing::Test {
 protected:
  OverTcp() {
    EmbeddedParts parts = StubParts(prefill_, decode_);
    parts.grpc_address = "127.0.0.1:0";
    cluster_.emplace(std::move(parts));
    address_ = "127.0.0.1:" + std::to_string(cluster_->embedded->grpc_port());
  }

  // A unary call with bytes for messages: the health service's stubs are not part of Debian.
  static grpc::Status Call(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                           const std::string& request, std::string* response) {
    grpc::GenericStub stub(channel);
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    const grpc::Slice slice(request);
    const grpc::ByteBuffer out(&slice, 1);
    const auto call = stub.PrepareUnaryCall(&context, method, out, &queue);
    call->StartCall();
    grpc::ByteBuffer in;
    grpc::Status status;
    call->Finish(&in, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    queue.Next(&tag, &ok);
    std::vector<grpc::Slice> slices;
    if (status.ok() && in.Dump(&slices).ok()) {
      for (const grpc::Slice& part : slices) {
        response->append(reinterpret_cast<const char*>(part.begin()), part.size());
      }
    }
    queue.Shutdown();
    return status;
  }

  // HealthCheckResponse.status of a service: 1 serving, 2 not serving.
  int Health(const std::string& service) {
    std::string request;
    if (!service.empty())
      request = std::string("\x0a") + static_cast<char>(service.size()) + service;
    std::string response;
    const grpc::Status status =
        Call(MakeClientChannel(address_), "/grpc.health.v1.Health/Check", request, &response);
    if (!status.ok()) return -status.error_code();
    return response.size() == 2 ? response[1] : 0;
  }

  Gate prefill_, decode_;
  std::optional<StubCluster> cluster_;
  std::string address_;
};

TEST_F(OverTcp, HealthSaysAliveAndReady) {
  EXPECT_EQ(Health(""), 1);
  EXPECT_EQ(Health("baton.v1.Completion"), 1);
  EXPECT_EQ(Health("no.such.Service"), -grpc::StatusCode::NOT_FOUND);
  cluster_->embedded->Drain();
  EXPECT_TRUE(cluster_->WaitFor([&] { return Health("baton.v1.Completion") == 2; }));
  EXPECT_EQ(Health(""), 1);
}

TEST_F(OverTcp, ReflectionListsTheService) {
  grpc::GenericStub stub(MakeClientChannel(address_));
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  void* tag = nullptr;
  bool ok = false;
  const auto call = stub.PrepareCall(
      &context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  call->StartCall(&context);
  queue.Next(&tag, &ok);
  const grpc::Slice slice(std::string("\x3a\x01*"));  // list_services: "*"
  call->Write(grpc::ByteBuffer(&slice, 1), &context);
  queue.Next(&tag, &ok);
  grpc::ByteBuffer in;
  call->Read(&in, &context);
  queue.Next(&tag, &ok);
  ASSERT_TRUE(ok);
  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(in.Dump(&slices).ok());
  std::string listed;
  for (const grpc::Slice& part : slices) {
    listed.append(reinterpret_cast<const char*>(part.begin()), part.size());
  }
  EXPECT_THAT(listed, HasSubstr("baton.v1.Completion"));
  EXPECT_THAT(listed, HasSubstr("grpc.health.v1.Health"));
  context.TryCancel();
  grpc::Status status;
  call->Finish(&status, &context);
  queue.Next(&tag, &ok);
  queue.Shutdown();
}

// The HTTP/2 frames that a server answers to ten pings on a connection without calls: their types,
// up to the tenth acknowledged ping (type 6) or to goodbye (type 7).
std::string FramesAfterTenPings(int port, bool until_goodbye) {
  const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(::connect(socket, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  std::string hello = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
  hello.append("\0\0\0\4\0\0\0\0\0", 9);  // empty SETTINGS
  for (int i = 0; i < 10; ++i) hello.append("\0\0\10\6\0\0\0\0\0pingping", 17);
  EXPECT_EQ(::send(socket, hello.data(), hello.size(), 0), static_cast<ssize_t>(hello.size()));
  std::string types;
  unsigned char header[9];
  while ((until_goodbye || std::count(types.begin(), types.end(), '6') < 10) &&
         types.find('7') == std::string::npos &&
         ::recv(socket, header, sizeof header, MSG_WAITALL) == sizeof header) {
    std::string payload(size_t{header[0]} << 16 | size_t{header[1]} << 8 | header[2], 0);
    if (!payload.empty()) ::recv(socket, payload.data(), payload.size(), MSG_WAITALL);
    types += static_cast<char>('0' + header[3]);
  }
  ::close(socket);
  return types;
}

// gRPC's own default closes idle connections that ping more often than every five minutes (and
// without a call, every two hours). Ours is an interval below the usual 30 seconds.
TEST(Keepalive, IdleClientsMayPingAsOftenAsTheOptionSays) {
  EXPECT_LT(GrpcHostOptions().min_ping_interval, Duration::Seconds(30));
  const auto patient =
      GrpcHost::Start({.address = "127.0.0.1:0", .min_ping_interval = Duration::Millis(0)}, {});
  ASSERT_TRUE(patient.ok());
  EXPECT_EQ(FramesAfterTenPings((*patient)->port(), false).find('7'), std::string::npos);
  const auto strict = GrpcHost::Start({.address = "127.0.0.1:0"}, {});
  ASSERT_TRUE(strict.ok());
  EXPECT_NE(FramesAfterTenPings((*strict)->port(), true).find('7'), std::string::npos);
}

TEST_F(OverTcp, ATakenPortIsAnError) {
  const absl::Status status = GrpcHost::Start({.address = address_}, {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("cannot listen on " + address_ +
                                                       ": Address already in use; choose another"));
}

}  // namespace
}  // namespace baton::server
