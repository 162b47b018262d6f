#include "server/embedded.h"

#include <grpcpp/grpcpp.h>

#include <map>
#include <optional>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "decode_worker/service.h"
#include "prefill_worker/follower.h"
#include "prefill_worker/group_link.h"
#include "prefill_worker/service.h"
#include "server/grpc_host.h"
#include "server/http_server.h"
#include "server/operator_pages.h"

namespace baton::server {
namespace {

// By which the roles know each other in here; a decode rank is "decode-" and its number.
constexpr char kPrefillAddress[] = "prefill-0";

scheduler::WorkerIdentity IdentityOf(const std::string& role, const std::string& instance,
                                     const EmbeddedParts& parts) {
  const model::RunnerInfo& info = parts.decode_ranks.front().runner->info();
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

// A worker's rank that others call.
template <typename Worker>
struct Hosted {
  std::unique_ptr<Worker> worker;
  std::unique_ptr<GrpcHost> host;
};

class EmbeddedImpl final : public Embedded {
 public:
  ~EmbeddedImpl() override { Stop(Duration()); }

  absl::Status Start(EmbeddedParts parts, Clock& clock, Metrics& metrics, const Log& log) {
    BATON_CHECK(!parts.prefill_ranks.empty() && !parts.decode_ranks.empty());
    model_ = parts.model;
    tokenizer_ = parts.tokenizer;
    parts.router.router.identity = IdentityOf("router", "router-0", parts);
    parts.router.prefill_workers = {kPrefillAddress};
    parts.router.decode_workers.clear();
    const scheduler::WorkerIdentity prefill = IdentityOf("prefill", kPrefillAddress, parts);
    std::vector<scheduler::WorkerIdentity> decode;
    for (size_t rank = 0; rank < parts.decode_ranks.size(); ++rank) {
      decode.push_back(IdentityOf("decode", absl::StrCat("decode-", rank), parts));
    }
    for (auto* const ranks : {&parts.prefill_ranks, &parts.decode_ranks}) {
      for (EmbeddedRank& rank : *ranks) places_.push_back(std::move(rank.place));
    }
    BATON_RETURN_IF_ERROR(StartPrefill(prefill, parts, clock, metrics, log));
    for (size_t rank = 0; rank < decode.size(); ++rank) {
      BATON_RETURN_IF_ERROR(StartDecode(decode[rank], rank, parts, clock, metrics, log));
    }

    const auto to_worker = [this](const std::string& address) {
      const auto rank = decode_.find(address);
      return (rank == decode_.end() ? prefill_.host : rank->second.host)->LoopbackChannel();
    };
    router_ = RouterServer::Start(parts.router, model_, *tokenizer_, clock, to_worker, metrics,
                                  log.With({{"component", "router"}}));
    std::vector<grpc::Service*> services = {router_->service()};
    grpc::Service* const experts = decode_.begin()->second.worker->experts_service();
    if (experts != nullptr) services.push_back(experts);
    BATON_ASSIGN_OR_RETURN(host_, GrpcHost::Start({.address = parts.grpc_address}, services));
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

  absl::Status health() const override {
    for (const auto& rank : collectives_) BATON_RETURN_IF_ERROR(rank->health());
    // Decode ranks can do without one of them.
    absl::Status decode;
    for (const auto& [address, rank] : decode_) {
      decode = rank.worker->health();
      if (decode.ok()) break;
    }
    return decode;
  }

  void Drain() override { router_->Drain(); }

  bool drained() override {
    if (!router_->drained()) return false;
    if (!std::exchange(workers_draining_, true)) {
      for (auto& [address, rank] : decode_) rank.worker->Drain();
      prefill_.worker->Drain();
    }
    return WorkersDrained();
  }

  void Stop(Duration grace) override {
    // From the clients inwards; whatever Start did not get to is null.
    if (host_ != nullptr) host_->Shutdown(grace);
    http_.reset();
    if (router_ != nullptr) router_->WatchReady([](bool) {});
    host_.reset();
    router_.reset();
    // Ranks that are at work would wait for those that have stopped.
    if (prefill_.worker == nullptr || !workers_draining_ || !WorkersDrained()) {
      for (auto& rank : collectives_) rank->Abort(absl::UnavailableError("the process ends"));
    }
    for (auto& [address, rank] : decode_) {
      if (rank.worker != nullptr) rank.worker->CloseStreams();
    }
    for (auto& [address, rank] : decode_) rank.host.reset();
    decode_.clear();
    if (prefill_.worker != nullptr) prefill_.worker->CloseStreams();
    prefill_.host.reset();
    prefill_.worker.reset();  // its followers hear of it
    followers_.clear();
    link_.reset();
    collectives_.clear();
  }

 private:
  // Rank 0 leads and has the service.
  absl::Status StartPrefill(const scheduler::WorkerIdentity& identity, EmbeddedParts& parts,
                            Clock& clock, Metrics& metrics, const Log& log) {
    const Log prefill_log = log.With({{"component", "prefill"}});
    prefill_worker::PrefillLoopOptions options = parts.prefill;
    options.handoff.ranks = static_cast<int32_t>(parts.prefill_ranks.size());
    for (size_t rank = 1; rank < parts.prefill_ranks.size(); ++rank) {
      prefill_worker::FollowerOptions follower{.handoff = options.handoff,
                                               .timeout = parts.group_timeout,
                                               .poll_interval = parts.prefill_poll_interval};
      follower.handoff.rank = static_cast<int32_t>(rank);
      EmbeddedRank& own = parts.prefill_ranks[rank];
      BATON_ASSIGN_OR_RETURN(
          auto started,
          prefill_worker::Follower::Start(follower, clock, std::move(own.collectives),
                                          std::move(own.runner), std::move(own.transport),
                                          metrics.prefill(), prefill_log.With({{"rank", rank}})));
      followers_.push_back(std::move(started));
    }
    EmbeddedRank& leader = parts.prefill_ranks.front();
    if (leader.collectives != nullptr) {
      link_.emplace(*leader.collectives, parts.group_timeout);
      options.group = &*link_;
      collectives_.push_back(std::move(leader.collectives));
    }
    BATON_ASSIGN_OR_RETURN(
        prefill_.worker,
        prefill_worker::PrefillWorker::Start(
            {.identity = identity, .loop = options, .poll_interval = parts.prefill_poll_interval},
            clock, std::move(leader.runner), std::move(leader.transport), metrics.prefill(),
            prefill_log));
    BATON_ASSIGN_OR_RETURN(prefill_.host, GrpcHost::Start({}, {prefill_.worker->service()}));
    return absl::OkStatus();
  }

  absl::Status StartDecode(const scheduler::WorkerIdentity& identity, size_t rank,
                           EmbeddedParts& parts, Clock& clock, Metrics& metrics, const Log& log) {
    decode_worker::DecodeLoopOptions options = parts.decode;
    options.planner.first_epoch += uint64_t{rank} << 32;  // not those of other ranks
    EmbeddedRank& own = parts.decode_ranks[rank];
    if (own.group != nullptr) own.group->metrics = metrics.experts();
    if (own.collectives != nullptr) collectives_.push_back(std::move(own.collectives));
    const auto to_prefill = [this](const std::string&) { return prefill_.host->LoopbackChannel(); };
    Hosted<decode_worker::DecodeWorker>& started = decode_[identity.instance];
    BATON_ASSIGN_OR_RETURN(
        started.worker,
        decode_worker::DecodeWorker::Start(
            {.identity = identity, .loop = options}, clock, std::move(own.runner),
            std::move(own.transport), to_prefill, metrics.decode(),
            log.With({{"component", "decode"}, {"rank", rank}}), std::move(own.group)));
    BATON_ASSIGN_OR_RETURN(started.host, GrpcHost::Start({}, {started.worker->service()}));
    parts.router.decode_workers.push_back(identity.instance);
    return absl::OkStatus();
  }

  bool WorkersDrained() const {
    for (const auto& [address, rank] : decode_) {
      if (!rank.worker->drained()) return false;
    }
    return prefill_.worker->drained();
  }

  std::vector<std::unique_ptr<transport::GpuPlace>> places_;  // outlive all that computes there
  ModelDescription model_;
  std::shared_ptr<const model::Tokenizer> tokenizer_;
  // Of the ranks here that no follower owns; their runners use them.
  std::vector<std::unique_ptr<transport::Collectives>> collectives_;
  std::optional<prefill_worker::GroupLink> link_;  // the prefill leader's
  std::vector<std::unique_ptr<prefill_worker::Follower>> followers_;
  Hosted<prefill_worker::PrefillWorker> prefill_;
  std::map<std::string, Hosted<decode_worker::DecodeWorker>> decode_;  // by address
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
