#include "prefill_worker/service.h"

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "base/bounded_queue.h"
#include "base/status_macros.h"
#include "base/thread.h"
#include "model/metered_runner.h"
#include "proto/baton/v1/worker.grpc.pb.h"
#include "scheduler/identity.h"
#include "wire/deferred_inbox.h"
#include "wire/message_stream.h"
#include "wire/worker_messages.h"

namespace baton::prefill_worker {
namespace {

using scheduler::CallerId;
using scheduler::PrefillEvent;

// What the rest of the worker sees of its streams.
using CallerChannel = wire::ServerStream<v1::DecodeToPrefill, v1::PrefillToDecode>;
using WatcherChannel = wire::ServerStream<v1::WorkerIdentity, v1::PrefillEvent>;

// The open streams, and what they need of their worker. Thread-safe.
class Sessions {
 public:
  Sessions(const scheduler::WorkerIdentity& identity, Clock& clock,
           wire::DeferredInbox<PrefillEvent>& inbox, const Log& log)
      : identity(identity), clock(clock), inbox(inbox), log(log) {}

  const scheduler::WorkerIdentity& identity;
  Clock& clock;
  wire::DeferredInbox<PrefillEvent>& inbox;
  const Log log;

  // OK when `peer` may work with this worker; else the status to end its stream with.
  grpc::Status Check(const scheduler::WorkerIdentity& peer) const {
    const absl::Status compatible = scheduler::CheckCompatible(identity, peer);
    if (compatible.ok()) return grpc::Status::OK;
    const std::string why(compatible.message().data(), compatible.message().size());
    log.Warning("refused a peer", {{"peer", peer.instance}, {"cause", why}});
    return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, why);
  }

  CallerId AddCaller(std::shared_ptr<CallerChannel> stream) {
    std::lock_guard<std::mutex> lock(mutex_);
    const CallerId id(next_caller_++);
    callers_.emplace(id, std::move(stream));
    return id;
  }
  void RemoveCaller(CallerId id) {
    std::lock_guard<std::mutex> lock(mutex_);
    callers_.erase(id);
  }
  std::shared_ptr<CallerChannel> FindCaller(CallerId id) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = callers_.find(id);
    return found == callers_.end() ? nullptr : found->second;
  }

  // Sends the latest status, and from now on every one.
  void AddWatcher(std::shared_ptr<WatcherChannel> stream) {
    std::lock_guard<std::mutex> lock(mutex_);
    Publish(*stream);
    watchers_.insert(std::move(stream));
  }
  void RemoveWatcher(const std::shared_ptr<WatcherChannel>& stream) {
    std::lock_guard<std::mutex> lock(mutex_);
    watchers_.erase(stream);
  }
  void SetStatus(const scheduler::PrefillStatus& status) {
    std::lock_guard<std::mutex> lock(mutex_);
    status_ = status;
    for (const auto& watcher : watchers_) Publish(*watcher);
  }

  void FinishAll(const grpc::Status& status) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [id, caller] : callers_) caller->FinishWith(status);
    for (const auto& watcher : watchers_) watcher->FinishWith(status);
  }

 private:
  // mutex_ is held.
  void Publish(WatcherChannel& watcher) {
    v1::PrefillEvent event;
    wire::ToProto(status_, event.mutable_status());
    if (!watcher.Send(std::move(event))) {
      watcher.FinishWith(
          grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "the router reads too slowly"));
    }
  }

  std::mutex mutex_;
  // guarded by mutex_:
  uint64_t next_caller_ = 1;
  std::map<CallerId, std::shared_ptr<CallerChannel>> callers_;
  std::set<std::shared_ptr<WatcherChannel>> watchers_;
  scheduler::PrefillStatus status_;
};

// A decode rank's stream.
class CallerStream final : public CallerChannel {
 public:
  explicit CallerStream(Sessions& sessions) : sessions_(sessions) {}

 private:
  void OnMessage(v1::DecodeToPrefill& message) override {
    const auto read_next = [self = shared_from_this()] { self->ReadNext(); };
    if (message.has_hello() != !joined_) {
      FinishWith(grpc::Status(grpc::StatusCode::INVALID_ARGUMENT,
                              "the first message must be hello, and no other"));
    } else if (message.has_hello()) {
      Join(wire::FromProto(message.hello()));
    } else if (message.has_call()) {
      sessions_.inbox.Push(
          scheduler::CallReceived{id_, wire::FromProto(message.call()), sessions_.clock.Now()},
          read_next);
      return;
    } else if (message.has_cancel()) {
      sessions_.inbox.Push(scheduler::CallCancelled{id_, wire::FromProto(message.cancel().key())},
                           read_next);
      return;
    }
    ReadNext();
  }

  void Join(const scheduler::WorkerIdentity& decode) {
    const grpc::Status compatible = sessions_.Check(decode);
    if (!compatible.ok()) {
      FinishWith(compatible);
      return;
    }
    joined_ = true;
    name_ = decode.instance;
    v1::PrefillToDecode hello;
    wire::ToProto(sessions_.identity, hello.mutable_hello());
    if (!Send(std::move(hello))) return;  // over already
    id_ = sessions_.AddCaller(shared_from_this());
    in_table_ = true;
    sessions_.log.Info("decode rank connected", {{"decode", name_}});
  }

  void OnEnd(const grpc::Status&) override {
    if (!in_table_) return;
    sessions_.RemoveCaller(id_);
    sessions_.log.Info("decode rank disconnected", {{"decode", name_}});
    sessions_.inbox.Push(scheduler::CallerLost{id_});
  }

  Sessions& sessions_;
  // Used by gRPC's reactions only, which come one after the other.
  bool joined_ = false;
  bool in_table_ = false;
  CallerId id_;
  std::string name_;
};

// A router's stream.
class WatcherStream final : public WatcherChannel {
 public:
  explicit WatcherStream(Sessions& sessions) : sessions_(sessions) {}

 private:
  void OnMessage(v1::WorkerIdentity& message) override {
    const scheduler::WorkerIdentity router = wire::FromProto(message);
    const grpc::Status compatible = sessions_.Check(router);
    if (!compatible.ok() || joined_) {
      FinishWith(joined_ ? grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "a second hello")
                         : compatible);
    } else {
      joined_ = true;
      v1::PrefillEvent hello;
      wire::ToProto(sessions_.identity, hello.mutable_hello());
      if (Send(std::move(hello))) sessions_.AddWatcher(shared_from_this());
      sessions_.log.Info("router connected", {{"router", router.instance}});
    }
    ReadNext();
  }

  void OnEnd(const grpc::Status&) override { sessions_.RemoveWatcher(shared_from_this()); }

  Sessions& sessions_;
  bool joined_ = false;
};

class PrefillService final : public v1::PrefillWorker::CallbackService {
 public:
  explicit PrefillService(Sessions& sessions) : sessions_(sessions) {}
  grpc::ServerBidiReactor<v1::DecodeToPrefill, v1::PrefillToDecode>* Session(
      grpc::CallbackServerContext*) override {
    auto stream = std::make_shared<CallerStream>(sessions_);
    stream->Begin();
    return stream.get();
  }
  grpc::ServerBidiReactor<v1::WorkerIdentity, v1::PrefillEvent>* WatchStatus(
      grpc::CallbackServerContext*) override {
    auto stream = std::make_shared<WatcherStream>(sessions_);
    stream->Begin();
    return stream.get();
  }

 private:
  Sessions& sessions_;
};

class PrefillWorkerImpl final : public PrefillWorker, public PrefillOutbox, public PrefillObserver {
 public:
  PrefillWorkerImpl(const PrefillWorkerOptions& options, Clock& clock,
                    std::unique_ptr<model::Runner> runner,
                    std::unique_ptr<transport::KvTransport> transport,
                    const PrefillMetrics& metrics, const Log& log)
      : options_(options),
        metrics_(metrics),
        clock_(clock),
        runner_(std::move(runner)),
        metered_runner_(*runner_, clock, metrics.worker),
        queue_(options.inbox_capacity),
        transport_(std::move(transport)),
        inbox_([this](PrefillEvent&& event) { return queue_.TryPush(std::move(event)); }),
        sessions_(options_.identity, clock, inbox_, log),
        service_(sessions_) {}

  absl::Status Start() {
    BATON_ASSIGN_OR_RETURN(loop_, PrefillLoop::Create(options_.loop, clock_, metered_runner_,
                                                      *transport_, queue_, *this, *this));
    sessions_.SetStatus(loop_->initial_status());
    thread_.emplace("prefill", [this] { loop_->RunUntil(stop_); });
    if (options_.poll_interval > Duration()) {
      poller_.emplace("prefill-poll", [this] { WakeUntilStopped(); });
    }
    return absl::OkStatus();
  }

  ~PrefillWorkerImpl() override {
    stop_.store(true, std::memory_order_release);
    queue_.Wake();
    stopped_.Wake();
    poller_.reset();
    thread_.reset();
    inbox_.Close();
  }

  grpc::Service* service() override { return &service_; }
  void Drain() override { inbox_.Push(scheduler::DrainRequested{}); }
  bool drained() const override { return drained_.load(std::memory_order_acquire); }
  void CloseStreams() override {
    sessions_.FinishAll(
        grpc::Status(grpc::StatusCode::UNAVAILABLE, "the prefill worker shuts down"));
  }
  scheduler::PrefillReport last_report() const override {
    std::lock_guard<std::mutex> lock(report_mutex_);
    return report_;
  }

  void Send(scheduler::SendReply reply) override {
    const std::shared_ptr<CallerChannel> stream = sessions_.FindCaller(reply.caller);
    if (stream == nullptr) return;  // CallerLost is on its way
    v1::PrefillToDecode message;
    wire::ToProto(reply.reply, message.mutable_reply());
    if (!stream->Send(std::move(message))) {
      stream->FinishWith(
          grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "the decode rank reads too slowly"));
    }
  }
  void Send(scheduler::PublishStatus status) override { sessions_.SetStatus(status.status); }

  void OnStep(const scheduler::PrefillReport& report) override {
    inbox_.Flush();
    metrics_.worker.running_requests.Set(report.running);
    metrics_.worker.kv_pages_capacity.Set(report.total_pages);
    metrics_.worker.kv_pages_used.Set(report.total_pages - report.free_pages);
    metrics_.queue_requests.Set(report.waiting);
    metrics_.queue_tokens.Set(static_cast<double>(report.queued_tokens));
    metrics_.tokens_total.Add(report.rows);
    metrics_.handoff_sent_bytes_total.Add(static_cast<double>(report.handoff_bytes));
    metrics_.handoff_sent_messages_total.Add(static_cast<double>(report.handoff_messages));
    {
      std::lock_guard<std::mutex> lock(report_mutex_);
      report_ = report;
    }
    if (loop_->drained()) drained_.store(true, std::memory_order_release);
  }

 private:
  void WakeUntilStopped() {
    while (!stop_.load(std::memory_order_acquire)) {
      stopped_.WaitFor(options_.poll_interval);
      queue_.Wake();
    }
  }

  const PrefillWorkerOptions options_;
  const PrefillMetrics metrics_;
  Clock& clock_;
  const std::unique_ptr<model::Runner> runner_;
  model::MeteredRunner metered_runner_;
  PrefillInbox queue_;
  // Below the queue, which its wake-ups touch until it is gone.
  const std::unique_ptr<transport::KvTransport> transport_;
  wire::DeferredInbox<PrefillEvent> inbox_;
  Sessions sessions_;
  PrefillService service_;
  std::unique_ptr<PrefillLoop> loop_;

  std::atomic<bool> stop_{false};
  std::atomic<bool> drained_{false};
  mutable std::mutex report_mutex_;
  scheduler::PrefillReport report_;  // guarded by report_mutex_
  BoundedQueue<int> stopped_{1};     // nothing but a wake-up for poller_
  std::optional<Thread> thread_;
  std::optional<Thread> poller_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PrefillWorker>> PrefillWorker::Start(
    const PrefillWorkerOptions& options, Clock& clock, std::unique_ptr<model::Runner> runner,
    std::unique_ptr<transport::KvTransport> transport, const PrefillMetrics& metrics,
    const Log& log) {
  auto worker = std::make_unique<PrefillWorkerImpl>(options, clock, std::move(runner),
                                                    std::move(transport), metrics, log);
  BATON_RETURN_IF_ERROR(worker->Start());
  return worker;
}

}  // namespace baton::prefill_worker
