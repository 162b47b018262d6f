#include "decode_worker/service.h"

#include <grpcpp/grpcpp.h>

#include <mutex>
#include <optional>
#include <utility>

#include "base/gauge_share.h"
#include "base/loop_thread.h"
#include "base/status_macros.h"
#include "decode_worker/experts_service.h"
#include "decode_worker/service_prefill_links.h"
#include "model/metered_runner.h"
#include "proto/baton/v1/worker.grpc.pb.h"
#include "wire/deferred_inbox.h"
#include "wire/own_identity.h"
#include "wire/sessions.h"
#include "wire/worker_messages.h"

namespace baton::decode_worker {
namespace {

using scheduler::DecodeEvent;

using RouterSessions =
    wire::Sessions<RouterId, DecodeEvent, v1::RouterToDecode, v1::DecodeToRouter>;

// A router's stream.
class RouterStream final
    : public wire::PeerStream<RouterId, DecodeEvent, v1::RouterToDecode, v1::DecodeToRouter> {
 public:
  using PeerStream::PeerStream;

 private:
  std::optional<DecodeEvent> ToEvent(v1::RouterToDecode& message) override {
    if (message.has_start()) {
      return scheduler::StartReceived{id(), wire::FromProto(message.start()),
                                      sessions().clock.Now()};
    }
    if (message.has_cancel()) {
      return scheduler::CancelReceived{id(), {wire::FromProto(message.cancel().key())}};
    }
    return std::nullopt;
  }
  void OnJoined() override { sessions().inbox.Push(scheduler::RouterJoined{id()}); }
  DecodeEvent LostEvent() override { return scheduler::RouterLost{id()}; }
};

class DecodeService final : public v1::DecodeWorker::CallbackService {
 public:
  explicit DecodeService(RouterSessions& sessions) : sessions_(sessions) {}
  grpc::ServerBidiReactor<v1::RouterToDecode, v1::DecodeToRouter>* Session(
      grpc::CallbackServerContext*) override {
    auto stream = std::make_shared<RouterStream>(sessions_);
    stream->Begin();
    return stream.get();
  }

 private:
  RouterSessions& sessions_;
};

class DecodeWorkerImpl final : public DecodeWorker, public DecodeOutbox, public DecodeObserver {
 public:
  DecodeWorkerImpl(const DecodeWorkerOptions& options, Clock& clock,
                   std::unique_ptr<model::Runner> runner,
                   std::unique_ptr<transport::KvTransport> transport, wire::ChannelFactory channels,
                   const DecodeMetrics& metrics, const Log& log, std::unique_ptr<DecodeGroup> group)
      : options_(options),
        identity_(options.identity),
        metrics_(metrics),
        clock_(clock),
        log_(log),
        group_parts_(std::move(group)),
        runner_(std::move(runner)),
        metered_runner_(*runner_, clock, metrics.worker),
        queue_(options.inbox_capacity),
        transport_(std::move(transport)),
        inbox_([this](DecodeEvent&& event) { return queue_.TryPush(std::move(event)); }),
        sessions_(identity_, clock, inbox_, log),
        links_(identity_, options.max_prefill_workers, std::move(channels), clock, inbox_, log),
        service_(sessions_),
        thread_(queue_, clock) {}

  absl::Status Start() {
    model::Runner* runner = &metered_runner_;
    if (group_parts_ != nullptr) {
      BATON_ASSIGN_OR_RETURN(
          group_, ExpertGroup::Create(group_parts_->options, clock_, metered_runner_,
                                      *group_parts_->seat, *group_parts_->rendezvous, log_));
      experts_service_ = MakeExpertsService(*group_, clock_);
      runner = group_.get();
    }
    BATON_ASSIGN_OR_RETURN(
        std::unique_ptr<DecodeLoop> loop,
        DecodeLoop::Create(options_.loop, clock_, *runner, *transport_, queue_, *this, *this));
    thread_.Start("decode", std::move(loop));
    return absl::OkStatus();
  }

  ~DecodeWorkerImpl() override {
    if (group_ != nullptr) group_->Interrupt();
    thread_.Stop();
    experts_service_.reset();
    group_.reset();
    runner_->SetWakeup([] {});  // the other ranks of its group go on
    inbox_.Close();
    links_.CloseAll();
    links_.WaitUntilClosed();
  }

  grpc::Service* service() override { return &service_; }
  void Announce(const std::string& instance) override { identity_.SetInstance(instance); }

  void Drain() override { inbox_.Push(scheduler::DrainRequested{}); }
  bool draining() const override { return thread_.last_report().draining; }
  bool drained() const override { return thread_.drained(); }
  void CloseStreams() override {
    if (group_ != nullptr) group_->Interrupt();  // the other ranks here will go, too
    sessions_.FinishAll(
        grpc::Status(grpc::StatusCode::UNAVAILABLE, "the decode worker shuts down"));
  }
  scheduler::DecodeReport last_report() const override { return thread_.last_report(); }
  absl::Status health() const override {
    std::lock_guard<std::mutex> lock(health_mutex_);
    return health_;
  }
  bool joined() const override { return group_ == nullptr || group_->View() != nullptr; }
  bool dispensable() const override {
    const std::shared_ptr<const ExpertsView> view = group_ == nullptr ? nullptr : group_->View();
    return view != nullptr && CanSpare(*view, view->rank);
  }
  bool masked() const override {
    const std::shared_ptr<const ExpertsView> view = group_ == nullptr ? nullptr : group_->View();
    return view != nullptr && !view->active.live[static_cast<size_t>(view->rank)];
  }
  grpc::Service* experts_service() override { return experts_service_.get(); }

  void Send(scheduler::SendUpdate update) override {
    for (const scheduler::TokenChunk& chunk : update.update.chunks) {
      if (!chunk.has_first_token_timings) continue;
      metrics_.handoff_exposed_seconds.Observe(chunk.timings.transfer_exposed.seconds());
    }
    v1::DecodeToRouter message;
    wire::ToProto(update.update, message.mutable_update());
    sessions_.Send(update.router, std::move(message));
  }
  void Send(scheduler::CallPrefill call) override { links_.Call(call); }
  void Send(scheduler::CancelPrefill cancel) override { links_.Cancel(cancel); }

  void OnStep(const scheduler::DecodeReport& report, const LandingReport& landing) override {
    inbox_.Flush();
    Record(report, landing);
    if (group_ != nullptr) WatchGroup();
    thread_.OnStep(report);
  }

 private:
  // Where this rank has left its group, routers are to go elsewhere with what it was running.
  void WatchGroup() {
    RecordExperts(*group_, group_parts_->metrics, clock_);
    if (group_->health().ok() || !health().ok()) return;
    {
      std::lock_guard<std::mutex> lock(health_mutex_);
      health_ = group_->health();
    }
    inbox_.Push(scheduler::DrainRequested{});
    sessions_.FinishAll(grpc::Status(grpc::StatusCode::UNAVAILABLE,
                                     "the decode rank has left its group: " + health_.ToString()));
  }

  void Record(const scheduler::DecodeReport& report, const LandingReport& landing) {
    running_requests_.Set(report.running);
    kv_pages_capacity_.Set(report.total_pages);
    kv_pages_used_.Set(report.total_pages - report.free_pages);
    landing_requests_.Set(report.landing);
    prefix_cache_pages_.Set(report.cached_pages);
    metrics_.worker.prefix_cache_lookup_tokens_total.Add(static_cast<double>(report.lookup_tokens));
    metrics_.worker.prefix_cache_hit_tokens_total.Add(static_cast<double>(report.hit_tokens));
    metrics_.worker.prefix_cache_evicted_pages_total.Add(static_cast<double>(report.evicted_pages));
    metrics_.prefix_cache_generated_tokens_total.Add(static_cast<double>(report.generated_tokens));
    metrics_.preemptions_total.Add(report.preempted);
    metrics_.handoff_received_bytes_total.Add(static_cast<double>(landing.bytes));
    metrics_.handoff_received_messages_total.Add(landing.messages);
    for (Duration handoff : landing.handoffs) {
      metrics_.handoff_seconds.Observe(handoff.seconds());
    }
    const auto& failures = metrics_.handoff_failures_total;
    failures[HandoffFailure::kEpoch].Add(landing.unknown_epoch);
    failures[HandoffFailure::kChecksum].Add(landing.bad_checksum);
    failures[HandoffFailure::kDuplicate].Add(landing.duplicate);
    failures[HandoffFailure::kMalformed].Add(landing.bad_header);
    failures[HandoffFailure::kTimeout].Add(report.handoff_timeouts);
    failures[HandoffFailure::kPeerLost].Add(report.prefill_errors);
  }

  const DecodeWorkerOptions options_;
  wire::OwnIdentity identity_;
  const DecodeMetrics metrics_;
  GaugeShare running_requests_{metrics_.worker.running_requests};
  GaugeShare kv_pages_capacity_{metrics_.worker.kv_pages_capacity};
  GaugeShare kv_pages_used_{metrics_.worker.kv_pages_used};
  GaugeShare prefix_cache_pages_{metrics_.worker.prefix_cache_pages};
  GaugeShare landing_requests_{metrics_.landing_requests};
  Clock& clock_;
  const Log log_;
  const std::unique_ptr<DecodeGroup>
      group_parts_;  // null: one rank alone; the runner uses the seat
  const std::unique_ptr<model::Runner> runner_;
  model::MeteredRunner metered_runner_;
  DecodeInbox queue_;
  // Below the queue, which its wake-ups touch until it is gone.
  const std::unique_ptr<transport::KvTransport> transport_;
  std::unique_ptr<ExpertGroup> group_;              // null without group_parts_
  std::unique_ptr<grpc::Service> experts_service_;  // as that
  mutable std::mutex health_mutex_;
  absl::Status health_;  // guarded by health_mutex_
  wire::DeferredInbox<DecodeEvent> inbox_;
  RouterSessions sessions_;
  PrefillLinks links_;
  DecodeService service_;
  LoopThread<DecodeLoop, DecodeEvent, scheduler::DecodeReport> thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DecodeWorker>> DecodeWorker::Start(
    const DecodeWorkerOptions& options, Clock& clock, std::unique_ptr<model::Runner> runner,
    std::unique_ptr<transport::KvTransport> transport, wire::ChannelFactory channels,
    const DecodeMetrics& metrics, const Log& log, std::unique_ptr<DecodeGroup> group) {
  auto worker =
      std::make_unique<DecodeWorkerImpl>(options, clock, std::move(runner), std::move(transport),
                                         std::move(channels), metrics, log, std::move(group));
  BATON_RETURN_IF_ERROR(worker->Start());
  return worker;
}

}  // namespace baton::decode_worker
