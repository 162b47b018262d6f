#include "server/router_server.h"

#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/codegen/service_type.h>

#include <atomic>
#include <mutex>
#include <random>
#include <utility>

#include "base/loop_thread.h"
#include "server/frontend_loop.h"

namespace baton::server {
namespace {

class RouterServerImpl final : public RouterServer, public FrontendOutbox, public FrontendObserver {
 public:
  RouterServerImpl(const RouterServerOptions& options, const ModelDescription& model,
                   const model::Tokenizer& tokenizer, Clock& clock,
                   const wire::ChannelFactory& channels, Metrics& metrics, const Log& log)
      : options_(options),
        clock_(clock),
        started_(clock.Now()),
        metrics_(metrics.router()),
        inbox_(options.inbox_capacity),
        frontend_(options.frontend, std::random_device{}(), clock, inbox_, metrics_),
        service_(MakeCompletionService(model, tokenizer, frontend_, [this] { return Summary(); })),
        workers_(WorkerClient::Start(options.router.identity,
                                     {options.decode_workers, options.prefill_workers,
                                      options.dns_interval, options.resolver},
                                     channels, clock, inbox_, metrics, log)),
        thread_(inbox_.queue(), clock) {
    thread_.Start("router",
                  std::make_unique<FrontendLoop>(options.router, clock, inbox_, *this, *this));
  }

  ~RouterServerImpl() override {
    thread_.Stop();
    workers_.reset();
  }

  grpc::Service* service() override { return service_.get(); }

  void WatchReady(std::function<void(bool)> on_ready) override {
    std::lock_guard<std::mutex> lock(mutex_);
    on_ready_ = std::move(on_ready);
    on_ready_(ready_);
  }

  void Drain() override {
    drain_wanted_.store(true, std::memory_order_release);
    inbox_.queue().Wake();
  }
  bool drained() const override { return thread_.drained(); }

  ServerSummary Summary() const override {
    ServerSummary summary;
    summary.version = options_.version;
    summary.revision = options_.revision;
    summary.uptime = clock_.Now() - started_;
    summary.workers = workers_->Summaries();
    const scheduler::WorkerIdentity agreed = workers_->Agreed();
    summary.model_hash = agreed.model_hash;
    summary.kv_format = agreed.kv_format;
    const scheduler::RouterReport report = thread_.last_report();
    summary.ready = IsReady(report);
    summary.draining = report.draining;
    summary.queued_requests = report.queued;
    summary.running_requests = report.running;
    return summary;
  }

  void Send(scheduler::SendStart start) override { workers_->Send(start); }
  void Send(scheduler::SendCancel cancel) override { workers_->Send(cancel); }
  void Deliver(scheduler::EmitTokens tokens) override { frontend_.Deliver(tokens); }
  void Deliver(scheduler::RequestResult result) override { frontend_.Deliver(result); }
  void Refuse(scheduler::RefuseWorker refusal) override { workers_->Refuse(refusal); }

  void OnStep(const scheduler::RouterReport& report) override {
    workers_->Flush();
    frontend_.Flush();
    if (drain_wanted_.load(std::memory_order_acquire) && !drain_sent_) {
      drain_sent_ = inbox_.TryPush(scheduler::DrainRequested{});
    }
    metrics_.queue_requests.Set(report.queued);
    metrics_.inflight_requests.Set(report.running);
    metrics_.retries_total[RetryCause::kRefused].Add(report.refusals);
    metrics_.retries_total[RetryCause::kPreempted].Add(report.preemptions);
    const uint32_t lost = report.decode_losses + report.prefill_losses;
    metrics_.retries_total[RetryCause::kWorkerLost].Add(lost);
    metrics_.retries_total[RetryCause::kHandoff].Add(report.retries - lost);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      const bool ready = IsReady(report);
      if (std::exchange(ready_, ready) != ready && on_ready_) on_ready_(ready);
    }
    thread_.OnStep(report);  // Summary shows it: whoever waits there has been told by now
  }

 private:
  static bool IsReady(const scheduler::RouterReport& report) {
    return report.decode_ranks > 0 && report.prefill_workers > 0 && !report.draining;
  }

  const RouterServerOptions options_;
  Clock& clock_;
  const Tick started_;
  const RouterMetrics metrics_;
  FrontendInbox inbox_;
  Frontend frontend_;
  const std::unique_ptr<grpc::Service> service_;
  std::unique_ptr<WorkerClient> workers_;

  std::mutex mutex_;
  bool ready_ = false;                  // guarded by mutex_
  std::function<void(bool)> on_ready_;  // guarded by mutex_
  std::atomic<bool> drain_wanted_{false};
  bool drain_sent_ = false;  // loop's thread
  LoopThread<FrontendLoop, scheduler::RouterEvent, scheduler::RouterReport> thread_;
};

}  // namespace

std::string NotReadyReason(const ServerSummary& summary) {
  if (summary.draining) return "draining";
  if (summary.ready) return std::string();
  std::string reason = "not connected to:";
  for (const WorkerSummary& worker : summary.workers) {
    if (!worker.connected) reason += " " + worker.role + "=" + worker.instance;
  }
  return reason;
}

std::unique_ptr<RouterServer> RouterServer::Start(const RouterServerOptions& options,
                                                  const ModelDescription& model,
                                                  const model::Tokenizer& tokenizer, Clock& clock,
                                                  const wire::ChannelFactory& channels,
                                                  Metrics& metrics, const Log& log) {
  return std::make_unique<RouterServerImpl>(options, model, tokenizer, clock, channels, metrics,
                                            log);
}

}  // namespace baton::server
