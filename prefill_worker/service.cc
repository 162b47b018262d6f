#include "prefill_worker/service.h"

#include <grpcpp/grpcpp.h>

#include <mutex>
#include <optional>
#include <set>
#include <utility>

#include "base/loop_thread.h"
#include "base/status_macros.h"
#include "model/metered_runner.h"
#include "proto/baton/v1/worker.grpc.pb.h"
#include "wire/deferred_inbox.h"
#include "wire/message_stream.h"
#include "wire/own_identity.h"
#include "wire/sessions.h"
#include "wire/worker_messages.h"

namespace baton::prefill_worker {
namespace {

using scheduler::CallerId;
using scheduler::PrefillEvent;

using CallerSessions =
    wire::Sessions<CallerId, PrefillEvent, v1::DecodeToPrefill, v1::PrefillToDecode>;

// A decode rank's stream.
class CallerStream final
    : public wire::PeerStream<CallerId, PrefillEvent, v1::DecodeToPrefill, v1::PrefillToDecode> {
 public:
  using PeerStream::PeerStream;

 private:
  std::optional<PrefillEvent> ToEvent(v1::DecodeToPrefill& message) override {
    if (message.has_call()) {
      return scheduler::CallReceived{id(), wire::FromProto(message.call()), sessions().clock.Now()};
    }
    if (message.has_cancel()) {
      return scheduler::CallCancelled{id(), wire::FromProto(message.cancel().key())};
    }
    return std::nullopt;
  }
  PrefillEvent LostEvent() override { return scheduler::CallerLost{id()}; }
};

// The routers' streams: each is told the worker's status when it comes and whenever it changes.
// Thread-safe.
class Watchers {
 public:
  using Stream = wire::ServerStream<v1::WorkerIdentity, v1::PrefillEvent>;

  Watchers(const wire::OwnIdentity& identity, const Log& log) : identity(identity), log(log) {}

  const wire::OwnIdentity& identity;
  const Log log;

  void Add(std::shared_ptr<Stream> stream) {
    std::lock_guard<std::mutex> lock(mutex_);
    Publish(*stream);
    streams_.insert(std::move(stream));
  }
  void Remove(const std::shared_ptr<Stream>& stream) {
    std::lock_guard<std::mutex> lock(mutex_);
    streams_.erase(stream);
  }
  void SetStatus(const scheduler::PrefillStatus& status) {
    std::lock_guard<std::mutex> lock(mutex_);
    status_ = status;
    for (const auto& stream : streams_) Publish(*stream);
  }
  void FinishAll(const grpc::Status& status) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& stream : streams_) stream->FinishWith(status);
  }

 private:
  // mutex_ is held.
  void Publish(Stream& stream) {
    v1::PrefillEvent event;
    wire::ToProto(status_, event.mutable_status());
    stream.SendOrFinish(std::move(event));
  }

  std::mutex mutex_;
  std::set<std::shared_ptr<Stream>> streams_;  // guarded by mutex_
  scheduler::PrefillStatus status_;            // guarded by mutex_
};

class WatcherStream final : public Watchers::Stream {
 public:
  explicit WatcherStream(Watchers& watchers) : watchers_(watchers) {}

 private:
  void OnMessage(v1::WorkerIdentity& message) override {
    const scheduler::WorkerIdentity router = wire::FromProto(message);
    const scheduler::WorkerIdentity own = watchers_.identity.Get();
    const grpc::Status compatible = wire::CheckPeer(own, router, watchers_.log);
    if (!compatible.ok() || greeted_) {
      FinishWith(greeted_ ? grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "a second hello")
                          : compatible);
    } else {
      greeted_ = true;
      v1::PrefillEvent hello;
      wire::ToProto(own, hello.mutable_hello());
      if (Send(std::move(hello))) watchers_.Add(shared_from_this());
      watchers_.log.Info("router connected", {{"router", router.instance}});
    }
    ReadNext();
  }

  void OnEnd(const grpc::Status&) override { watchers_.Remove(shared_from_this()); }

  Watchers& watchers_;
  bool greeted_ = false;
};

class PrefillService final : public v1::PrefillWorker::CallbackService {
 public:
  PrefillService(CallerSessions& sessions, Watchers& watchers)
      : sessions_(sessions), watchers_(watchers) {}
  grpc::ServerBidiReactor<v1::DecodeToPrefill, v1::PrefillToDecode>* Session(
      grpc::CallbackServerContext*) override {
    auto stream = std::make_shared<CallerStream>(sessions_);
    stream->Begin();
    return stream.get();
  }
  grpc::ServerBidiReactor<v1::WorkerIdentity, v1::PrefillEvent>* WatchStatus(
      grpc::CallbackServerContext*) override {
    auto stream = std::make_shared<WatcherStream>(watchers_);
    stream->Begin();
    return stream.get();
  }

 private:
  CallerSessions& sessions_;
  Watchers& watchers_;
};

class PrefillWorkerImpl final : public PrefillWorker, public PrefillOutbox, public PrefillObserver {
 public:
  PrefillWorkerImpl(const PrefillWorkerOptions& options, Clock& clock,
                    std::unique_ptr<model::Runner> runner, const PrefillMetrics& metrics,
                    const Log& log)
      : options_(options),
        identity_(options.identity),
        metrics_(metrics),
        clock_(clock),
        runner_(std::move(runner)),
        metered_runner_(*runner_, clock, metrics.worker),
        queue_(options.inbox_capacity),
        inbox_([this](PrefillEvent&& event) { return queue_.TryPush(std::move(event)); }),
        sessions_(identity_, clock, inbox_, log),
        watchers_(identity_, log),
        service_(sessions_, watchers_),
        thread_(queue_, clock, options.poll_interval) {}

  absl::Status Start(std::unique_ptr<transport::KvTransport> transport) {
    PrefillLoopOptions options = options_.loop;
    options.handoff.metrics = metrics_.handoff;
    BATON_ASSIGN_OR_RETURN(std::unique_ptr<PrefillLoop> loop,
                           PrefillLoop::Create(options, clock_, metered_runner_,
                                               std::move(transport), queue_, *this, *this));
    watchers_.SetStatus(loop->initial_status());
    thread_.Start("prefill", std::move(loop));
    return absl::OkStatus();
  }

  ~PrefillWorkerImpl() override {
    thread_.Stop();
    runner_->SetWakeup([] {});  // the other ranks of its group may go on
    inbox_.Close();
  }

  grpc::Service* service() override { return &service_; }
  void Announce(const std::string& instance) override { identity_.SetInstance(instance); }
  void Drain() override { inbox_.Push(scheduler::DrainRequested{}); }
  bool draining() const override { return thread_.last_report().draining; }
  bool drained() const override { return thread_.drained(); }
  void CloseStreams() override {
    const grpc::Status status(grpc::StatusCode::UNAVAILABLE, "the prefill worker shuts down");
    sessions_.FinishAll(status);
    watchers_.FinishAll(status);
  }
  scheduler::PrefillReport last_report() const override { return thread_.last_report(); }

  void Send(scheduler::SendReply reply) override {
    v1::PrefillToDecode message;
    wire::ToProto(reply.reply, message.mutable_reply());
    sessions_.Send(reply.caller, std::move(message));
  }
  void Send(scheduler::PublishStatus status) override { watchers_.SetStatus(status.status); }

  void OnStep(const scheduler::PrefillReport& report) override {
    inbox_.Flush();
    metrics_.worker.running_requests.Set(report.running);
    metrics_.worker.kv_pages_capacity.Set(report.total_pages);
    metrics_.worker.kv_pages_used.Set(report.total_pages - report.free_pages);
    metrics_.worker.prefix_cache_pages.Set(report.cached_pages);
    metrics_.worker.prefix_cache_lookup_tokens_total.Add(static_cast<double>(report.lookup_tokens));
    metrics_.worker.prefix_cache_hit_tokens_total.Add(static_cast<double>(report.hit_tokens));
    metrics_.worker.prefix_cache_evicted_pages_total.Add(static_cast<double>(report.evicted_pages));
    metrics_.queue_requests.Set(report.waiting);
    metrics_.queue_tokens.Set(static_cast<double>(report.queued_tokens));
    metrics_.tokens_total.Add(report.rows);
    thread_.OnStep(report);
  }

 private:
  const PrefillWorkerOptions options_;
  wire::OwnIdentity identity_;
  const PrefillMetrics metrics_;
  Clock& clock_;
  const std::unique_ptr<model::Runner> runner_;
  model::MeteredRunner metered_runner_;
  PrefillInbox queue_;  // the loop's transport wakes it
  wire::DeferredInbox<PrefillEvent> inbox_;
  CallerSessions sessions_;
  Watchers watchers_;
  PrefillService service_;
  LoopThread<PrefillLoop, PrefillEvent, scheduler::PrefillReport> thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PrefillWorker>> PrefillWorker::Start(
    const PrefillWorkerOptions& options, Clock& clock, std::unique_ptr<model::Runner> runner,
    std::unique_ptr<transport::KvTransport> transport, const PrefillMetrics& metrics,
    const Log& log) {
  auto worker =
      std::make_unique<PrefillWorkerImpl>(options, clock, std::move(runner), metrics, log);
  BATON_RETURN_IF_ERROR(worker->Start(std::move(transport)));
  return worker;
}

}  // namespace baton::prefill_worker
