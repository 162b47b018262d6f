#include "server/embedded.h"

#include <grpcpp/grpcpp.h>

#include <random>
#include <utility>
#include <vector>

#include "base/status_macros.h"
#include "decode_worker/service.h"
#include "prefill_worker/service.h"
#include "server/grpc_host.h"
#include "server/http_server.h"
#include "server/operator_pages.h"

namespace baton::server {
namespace {

// Addresses by which the roles know each other in here.
constexpr char kPrefillAddress[] = "prefill-0";
constexpr char kDecodeAddress[] = "decode-0";

scheduler::WorkerIdentity IdentityOf(const std::string& role, const std::string& instance,
                                     const EmbeddedParts& parts) {
  const model::RunnerInfo& info = parts.decode_runner->info();
  scheduler::WorkerIdentity identity;
  identity.role = role;
  identity.instance = instance;
  std::random_device random;
  identity.incarnation = uint64_t{random()} << 32 | random();
  identity.model_name = parts.model.name;
  identity.model_hash = parts.model.hash;
  identity.kv_format = info.kv_format;
  identity.page_tokens = info.page_tokens;
  identity.layers = info.layers;
  identity.revision = parts.router.revision;
  return identity;
}

class EmbeddedImpl final : public Embedded {
 public:
  ~EmbeddedImpl() override { Stop(Duration()); }

  absl::Status Start(EmbeddedParts parts, Clock& clock, Metrics& metrics, const Log& log) {
    model_ = parts.model;
    tokenizer_ = parts.tokenizer;
    const scheduler::WorkerIdentity router = IdentityOf("router", "router-0", parts);
    const scheduler::WorkerIdentity prefill = IdentityOf("prefill", kPrefillAddress, parts);
    const scheduler::WorkerIdentity decode = IdentityOf("decode", kDecodeAddress, parts);

    BATON_ASSIGN_OR_RETURN(
        prefill_, prefill_worker::PrefillWorker::Start(
                      {.identity = prefill,
                       .loop = parts.prefill,
                       .poll_interval = parts.prefill_poll_interval},
                      clock, std::move(parts.prefill_runner), std::move(parts.prefill_transport),
                      metrics.prefill(), log.With({{"component", "prefill"}})));
    BATON_ASSIGN_OR_RETURN(prefill_host_, GrpcHost::Start({}, {prefill_->service()}));

    const auto to_prefill = [this](const std::string&) { return prefill_host_->LoopbackChannel(); };
    BATON_ASSIGN_OR_RETURN(
        decode_, decode_worker::DecodeWorker::Start(
                     {.identity = decode, .loop = parts.decode}, clock,
                     std::move(parts.decode_runner), std::move(parts.decode_transport), to_prefill,
                     metrics.decode(), log.With({{"component", "decode"}})));
    BATON_ASSIGN_OR_RETURN(decode_host_, GrpcHost::Start({}, {decode_->service()}));

    parts.router.router.identity = router;
    parts.router.decode_workers = {kDecodeAddress};
    parts.router.prefill_workers = {kPrefillAddress};
    const auto to_worker = [this](const std::string& address) {
      return (address == kDecodeAddress ? decode_host_ : prefill_host_)->LoopbackChannel();
    };
    router_ = RouterServer::Start(parts.router, model_, *tokenizer_, clock, to_worker, metrics,
                                  log.With({{"component", "router"}}));
    BATON_ASSIGN_OR_RETURN(host_,
                           GrpcHost::Start({.address = parts.grpc_address}, {router_->service()}));
    router_->WatchReady([this](bool ready) { host_->SetServing(kCompletionServiceName, ready); });
    if (parts.http_address.empty()) return absl::OkStatus();
    BATON_ASSIGN_OR_RETURN(
        http_, HttpServer::Start({.address = parts.http_address}, OperatorPages(metrics, [this] {
                                   return NotReadyReason(router_->Summary());
                                 })));
    return absl::OkStatus();
  }

  int grpc_port() const override { return host_->port(); }
  int http_port() const override { return http_ == nullptr ? 0 : http_->port(); }
  std::shared_ptr<grpc::Channel> Channel() override { return host_->LoopbackChannel(); }
  ServerSummary Summary() const override { return router_->Summary(); }

  void Drain() override { router_->Drain(); }

  bool drained() override {
    if (!router_->drained()) return false;
    if (!std::exchange(workers_draining_, true)) {
      decode_->Drain();
      prefill_->Drain();
    }
    return decode_->drained() && prefill_->drained();
  }

  void Stop(Duration grace) override {
    // From the clients inwards; whatever Start did not get to is null.
    if (host_ != nullptr) host_->Shutdown(grace);
    http_.reset();
    if (router_ != nullptr) router_->WatchReady([](bool) {});
    host_.reset();
    router_.reset();
    if (decode_ != nullptr) decode_->CloseStreams();
    decode_host_.reset();
    decode_.reset();
    if (prefill_ != nullptr) prefill_->CloseStreams();
    prefill_host_.reset();
    prefill_.reset();
  }

 private:
  ModelDescription model_;
  std::shared_ptr<const model::Tokenizer> tokenizer_;
  std::unique_ptr<prefill_worker::PrefillWorker> prefill_;
  std::unique_ptr<GrpcHost> prefill_host_;
  std::unique_ptr<decode_worker::DecodeWorker> decode_;
  std::unique_ptr<GrpcHost> decode_host_;
  std::unique_ptr<RouterServer> router_;
  std::unique_ptr<GrpcHost> host_;
  std::unique_ptr<HttpServer> http_;
  bool workers_draining_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Embedded>> Embedded::Start(EmbeddedParts parts, Clock& clock,
                                                          Metrics& metrics, const Log& log) {
  auto embedded = std::make_unique<EmbeddedImpl>();
  BATON_RETURN_IF_ERROR(embedded->Start(std::move(parts), clock, metrics, log));
  return embedded;
}

}  // namespace baton::server
