// Who may connect to whom.

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <mutex>
#include <string>
#include <string_view>

#include "decode_worker/service.h"
#include "prefill_worker/service.h"
#include "proto/baton/v1/worker.grpc.pb.h"
#include "server/grpc_host.h"
#include "server/router_server.h"
#include "tests/server/stub_cluster.h"
#include "transport/inproc/inproc_transport.h"
#include "wire/worker_messages.h"

namespace baton::server {
namespace {

using ::testing::HasSubstr;

scheduler::WorkerIdentity Identity(const std::string& role) {
  scheduler::WorkerIdentity identity;
  identity.role = role;
  identity.instance = role + "-here";
  identity.incarnation = 1;
  identity.model_name = "stub";
  identity.model_hash = "aaaa";
  identity.kv_format = "bf16";
  identity.page_tokens = sim::kPageTokens;
  identity.layers = sim::kLayers;
  identity.revision = "r1";
  return identity;
}

class WorkerSessionTest : public ::testing::Test {
 protected:
  WorkerSessionTest() : metrics_({.version = "0", .revision = "r1", .model_name = "stub"}) {
    auto decode = decode_worker::DecodeWorker::Start(
        {.identity = Identity("decode")}, clock_,
        std::make_unique<sim::StubRunner>(sim::StubRunnerOptions{}, nullptr),
        fabric_.NewEndpoint("decode"),
        [this](const std::string&) { return prefill_host_->LoopbackChannel(); }, metrics_.decode(),
        Log());
    auto prefill = prefill_worker::PrefillWorker::Start(
        {.identity = Identity("prefill")}, clock_,
        std::make_unique<sim::StubRunner>(sim::StubRunnerOptions{}, nullptr),
        fabric_.NewEndpoint("prefill"), metrics_.prefill(), Log());
    BATON_CHECK(decode.ok() && prefill.ok());
    decode_ = *std::move(decode);
    prefill_ = *std::move(prefill);
    decode_host_ = *GrpcHost::Start({}, {decode_->service()});
    prefill_host_ = *GrpcHost::Start({}, {prefill_->service()});
  }
  ~WorkerSessionTest() override {
    decode_host_.reset();
    decode_.reset();
    prefill_host_.reset();
    prefill_.reset();
  }

  // Says hello to the decode rank; the end of the stream, if it ends, else what it answered.
  grpc::Status SayHello(const scheduler::WorkerIdentity& router, v1::DecodeToRouter* answer) {
    const auto stub = v1::DecodeWorker::NewStub(decode_host_->LoopbackChannel());
    grpc::ClientContext context;
    const auto stream = stub->Session(&context);
    v1::RouterToDecode hello;
    wire::ToProto(router, hello.mutable_hello());
    stream->Write(hello);
    if (stream->Read(answer)) context.TryCancel();
    return stream->Finish();
  }

  MonotonicClock clock_;
  Metrics metrics_;
  transport::InprocFabric fabric_;
  std::unique_ptr<decode_worker::DecodeWorker> decode_;
  std::unique_ptr<prefill_worker::PrefillWorker> prefill_;
  std::unique_ptr<GrpcHost> decode_host_;
  std::unique_ptr<GrpcHost> prefill_host_;
};

TEST_F(WorkerSessionTest, AMatchingRouterIsGreeted) {
  v1::DecodeToRouter answer;
  SayHello(Identity("router"), &answer);
  ASSERT_TRUE(answer.has_hello());
  EXPECT_EQ(answer.hello().role(), "decode");
}

TEST_F(WorkerSessionTest, AMismatchIsRefusedByNameAndBothValues) {
  scheduler::WorkerIdentity router = Identity("router");
  router.model_hash = "bbbb";
  router.kv_format = "fp8";
  router.page_tokens = 128;
  router.revision = "r2";
  v1::DecodeToRouter answer;
  const grpc::Status status = SayHello(router, &answer);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  for (const char* part : {"aaaa", "bbbb", "bf16", "fp8", "128", "r1", "r2"}) {
    EXPECT_THAT(status.error_message(), HasSubstr(part));
  }
}

TEST_F(WorkerSessionTest, PrefillWorkersRefuseTooBothWays) {
  const auto stub = v1::PrefillWorker::NewStub(prefill_host_->LoopbackChannel());
  scheduler::WorkerIdentity decode = Identity("decode");
  decode.model_hash = "bbbb";
  {
    grpc::ClientContext context;
    const auto stream = stub->Session(&context);
    v1::DecodeToPrefill hello;
    wire::ToProto(decode, hello.mutable_hello());
    stream->Write(hello);
    v1::PrefillToDecode answer;
    EXPECT_FALSE(stream->Read(&answer));
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  }
  {
    grpc::ClientContext context;
    const auto stream = stub->WatchStatus(&context);
    v1::WorkerIdentity hello;
    wire::ToProto(decode, &hello);
    stream->Write(hello);
    v1::PrefillEvent answer;
    EXPECT_FALSE(stream->Read(&answer));
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  }
}

TEST_F(WorkerSessionTest, WorkThatComesBeforeHelloIsRefused) {
  const auto stub = v1::DecodeWorker::NewStub(decode_host_->LoopbackChannel());
  grpc::ClientContext context;
  const auto stream = stub->Session(&context);
  v1::RouterToDecode start;
  start.mutable_start()->add_prompt(1);
  stream->Write(start);
  v1::DecodeToRouter answer;
  EXPECT_FALSE(stream->Read(&answer));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

// A router whose lists name the wrong kind of worker, or another model's, is never ready.
TEST_F(WorkerSessionTest, ARouterDoesNotPairWhatDoesNotMatch) {
  RouterServerOptions options;
  options.router.identity = Identity("router");
  options.router.identity.model_hash = "bbbb";
  options.decode_workers = {"decode"};
  options.prefill_workers = {"prefill"};
  const auto tokenizer = ByteTokenizer();
  const ModelDescription model = StubModel();
  const auto channels = [this](const std::string& address) {
    return (address == "decode" ? decode_host_ : prefill_host_)->LoopbackChannel();
  };
  const std::unique_ptr<RouterServer> router =
      RouterServer::Start(options, model, *tokenizer, clock_, channels, metrics_, Log());
  const auto stub = v1::DecodeWorker::NewStub(decode_host_->LoopbackChannel());
  v1::DecodeToRouter answer;
  SayHello(Identity("router"), &answer);  // by now the router was refused, or is about to be
  EXPECT_FALSE(router->Summary().ready);
  EXPECT_THAT(NotReadyReason(router->Summary()), HasSubstr("decode=decode prefill=prefill"));
}

// A worker on port 0 learns its own name late.
TEST_F(WorkerSessionTest, AWorkerHasItsNameBeforeItGreets) {
  scheduler::WorkerIdentity nameless = Identity("decode");
  nameless.instance.clear();
  auto decode = decode_worker::DecodeWorker::Start(
      {.identity = nameless}, clock_,
      std::make_unique<sim::StubRunner>(sim::StubRunnerOptions{}, nullptr),
      fabric_.NewEndpoint("nameless"),
      [this](const std::string&) { return prefill_host_->LoopbackChannel(); }, metrics_.decode(),
      Log());
  ASSERT_TRUE(decode.ok());
  decode_host_.reset();
  decode_ = *std::move(decode);
  decode_host_ = *GrpcHost::Start({}, {decode_->service()});
  v1::DecodeToRouter answer;
  EXPECT_EQ(SayHello(Identity("router"), &answer).error_code(), grpc::StatusCode::UNAVAILABLE);
  decode_->Announce("here:" + std::to_string(decode_host_->port()));
  SayHello(Identity("router"), &answer);
  EXPECT_EQ(answer.hello().instance(), "here:" + std::to_string(decode_host_->port()));
}

// A router without a checkpoint: it knows the model's name and shape, not its hash and KV format.
class LearningRouterTest : public WorkerSessionTest {
 protected:
  RouterServerOptions Options() {
    RouterServerOptions options;
    options.router.identity = Identity("router");
    options.router.identity.model_hash.clear();
    options.router.identity.kv_format.clear();
    options.router.identity.page_tokens = 0;
    options.decode_workers = {"decode"};
    options.prefill_workers = {"prefill"};
    return options;
  }
  std::unique_ptr<RouterServer> StartRouter(GrpcHost& prefill, const Log& log) {
    const auto channels = [this, &prefill](const std::string& address) {
      return (address == "decode" ? *decode_host_ : prefill).LoopbackChannel();
    };
    return RouterServer::Start(Options(), model_, *tokenizer_, clock_, channels, metrics_, log);
  }
  const std::shared_ptr<const model::Tokenizer> tokenizer_ = ByteTokenizer();
  const ModelDescription model_ = StubModel();
};

TEST_F(LearningRouterTest, TakesHashAndKvFormatFromItsWorkers) {
  const std::unique_ptr<RouterServer> router = StartRouter(*prefill_host_, Log());
  ASSERT_TRUE(StubCluster::WaitFor([&] { return router->Summary().ready; }));
  EXPECT_EQ(router->Summary().model_hash, "aaaa");
  EXPECT_EQ(router->Summary().kv_format, "bf16");
}

TEST_F(LearningRouterTest, RequiresThatAllWorkersAgree) {
  scheduler::WorkerIdentity other = Identity("prefill");
  other.model_hash = "bbbb";
  auto prefill = prefill_worker::PrefillWorker::Start(
      {.identity = other}, clock_,
      std::make_unique<sim::StubRunner>(sim::StubRunnerOptions{}, nullptr),
      fabric_.NewEndpoint("other"), metrics_.prefill(), Log());
  ASSERT_TRUE(prefill.ok());
  const std::unique_ptr<GrpcHost> host = *GrpcHost::Start({}, {(*prefill)->service()});
  std::mutex mutex;
  std::string lines;
  const Log log(LogOptions{.sink = [&](std::string_view line) {
    std::lock_guard<std::mutex> lock(mutex);
    lines += line;
  }});
  {
    const std::unique_ptr<RouterServer> router = StartRouter(*host, log);
    // Whichever comes first is the measure of the other.
    ASSERT_TRUE(StubCluster::WaitFor([&] {
      std::lock_guard<std::mutex> lock(mutex);
      return lines.find("cannot work with") != std::string::npos;
    }));
    EXPECT_FALSE(router->Summary().ready);
  }
  EXPECT_THAT(lines, HasSubstr("router router-here (with the model of "));
  EXPECT_THAT(lines, HasSubstr("model hash is '"));
  EXPECT_THAT(
      lines,
      HasSubstr("give both the same checkpoint, KV and expert settings and version of baton"));
}

}  // namespace
}  // namespace baton::server
