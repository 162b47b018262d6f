#include "decode_worker/service.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <optional>
#include <utility>

#include "base/status_macros.h"
#include "base/thread.h"
#include "decode_worker/service_prefill_links.h"
#include "model/metered_runner.h"
#include "proto/baton/v1/worker.grpc.pb.h"
#include "scheduler/identity.h"
#include "wire/deferred_inbox.h"
#include "wire/message_stream.h"
#include "wire/worker_messages.h"

namespace baton::decode_worker {
namespace {

using scheduler::DecodeEvent;

// What the rest of the worker sees of a router's stream.
using RouterChannel = wire::ServerStream<v1::RouterToDecode, v1::DecodeToRouter>;

// What the streams need of their worker.
class Sessions {
 public:
  Sessions(const scheduler::WorkerIdentity& identity, Clock& clock,
           wire::DeferredInbox<DecodeEvent>& inbox, const Log& log)
      : identity(identity), clock(clock), inbox(inbox), log(log) {}

  const scheduler::WorkerIdentity& identity;
  Clock& clock;
  wire::DeferredInbox<DecodeEvent>& inbox;
  const Log log;

  RouterId Add(std::shared_ptr<RouterChannel> stream) {
    std::lock_guard<std::mutex> lock(mutex_);
    const RouterId id(next_id_++);
    streams_.emplace(id, std::move(stream));
    return id;
  }
  void Remove(RouterId id) {
    std::lock_guard<std::mutex> lock(mutex_);
    streams_.erase(id);
  }
  std::shared_ptr<RouterChannel> Find(RouterId id) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = streams_.find(id);
    return found == streams_.end() ? nullptr : found->second;
  }
  std::map<RouterId, std::shared_ptr<RouterChannel>> All() {
    std::lock_guard<std::mutex> lock(mutex_);
    return streams_;
  }

 private:
  std::mutex mutex_;
  uint32_t next_id_ = 1;                                        // guarded by mutex_
  std::map<RouterId, std::shared_ptr<RouterChannel>> streams_;  // guarded by mutex_
};

// A router's stream.
class RouterStream final : public RouterChannel {
 public:
  explicit RouterStream(Sessions& sessions) : sessions_(sessions) {}

 private:
  void OnMessage(v1::RouterToDecode& message) override {
    const auto read_next = [self = shared_from_this()] { self->ReadNext(); };
    if (message.has_hello() != !joined_) {
      FinishWith(grpc::Status(grpc::StatusCode::INVALID_ARGUMENT,
                              "the first message must be hello, and no other"));
    } else if (message.has_hello()) {
      Join(wire::FromProto(message.hello()));
    } else if (message.has_start()) {
      sessions_.inbox.Push(
          scheduler::StartReceived{id_, wire::FromProto(message.start()), sessions_.clock.Now()},
          read_next);
      return;
    } else if (message.has_cancel()) {
      sessions_.inbox.Push(
          scheduler::CancelReceived{id_, {wire::FromProto(message.cancel().key())}}, read_next);
      return;
    }
    ReadNext();
  }

  void Join(const scheduler::WorkerIdentity& router) {
    const absl::Status compatible = scheduler::CheckCompatible(sessions_.identity, router);
    if (!compatible.ok()) {
      const std::string why(compatible.message().data(), compatible.message().size());
      sessions_.log.Warning("refused a router", {{"router", router.instance}, {"cause", why}});
      FinishWith(grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, why));
      return;
    }
    joined_ = true;
    name_ = router.instance;
    v1::DecodeToRouter hello;
    wire::ToProto(sessions_.identity, hello.mutable_hello());
    if (!Send(std::move(hello))) return;  // over already
    id_ = sessions_.Add(shared_from_this());
    in_table_ = true;
    sessions_.log.Info("router connected", {{"router", name_}});
    sessions_.inbox.Push(scheduler::RouterJoined{id_});
  }

  void OnEnd(const grpc::Status&) override {
    if (!in_table_) return;
    sessions_.Remove(id_);
    sessions_.log.Info("router disconnected", {{"router", name_}});
    sessions_.inbox.Push(scheduler::RouterLost{id_});
  }

  Sessions& sessions_;
  // Used by gRPC's reactions only, which come one after the other.
  bool joined_ = false;
  bool in_table_ = false;
  RouterId id_;
  std::string name_;
};

class DecodeService final : public v1::DecodeWorker::CallbackService {
 public:
  explicit DecodeService(Sessions& sessions) : sessions_(sessions) {}
  grpc::ServerBidiReactor<v1::RouterToDecode, v1::DecodeToRouter>* Session(
      grpc::CallbackServerContext*) override {
    auto stream = std::make_shared<RouterStream>(sessions_);
    stream->Begin();
    return stream.get();
  }

 private:
  Sessions& sessions_;
};

class DecodeWorkerImpl final : public DecodeWorker, public DecodeOutbox, public DecodeObserver {
 public:
  DecodeWorkerImpl(const DecodeWorkerOptions& options, Clock& clock,
                   std::unique_ptr<model::Runner> runner,
                   std::unique_ptr<transport::KvTransport> transport, ChannelFactory channels,
                   const DecodeMetrics& metrics, const Log& log)
      : options_(options),
        metrics_(metrics),
        clock_(clock),
        runner_(std::move(runner)),
        metered_runner_(*runner_, clock, metrics.worker),
        queue_(options.inbox_capacity),
        transport_(std::move(transport)),
        inbox_([this](DecodeEvent&& event) { return queue_.TryPush(std::move(event)); }),
        sessions_(options_.identity, clock, inbox_, log),
        links_(options_, std::move(channels), clock, inbox_, log),
        service_(sessions_) {}

  absl::Status Start() {
    BATON_ASSIGN_OR_RETURN(loop_, DecodeLoop::Create(options_.loop, clock_, metered_runner_,
                                                     *transport_, queue_, *this, *this));
    thread_.emplace("decode", [this] { loop_->RunUntil(stop_); });
    return absl::OkStatus();
  }

  ~DecodeWorkerImpl() override {
    stop_.store(true, std::memory_order_release);
    queue_.Wake();
    thread_.reset();
    inbox_.Close();
    links_.CloseAll();
    links_.WaitUntilClosed();
  }

  grpc::Service* service() override { return &service_; }

  void Drain() override { inbox_.Push(scheduler::DrainRequested{}); }
  bool drained() const override { return drained_.load(std::memory_order_acquire); }

  void CloseStreams() override {
    for (const auto& [id, stream] : sessions_.All()) {
      stream->FinishWith(
          grpc::Status(grpc::StatusCode::UNAVAILABLE, "the decode worker shuts down"));
    }
  }

  scheduler::DecodeReport last_report() const override {
    std::lock_guard<std::mutex> lock(report_mutex_);
    return report_;
  }

  void Send(scheduler::SendUpdate update) override {
    for (const scheduler::TokenChunk& chunk : update.update.chunks) {
      if (!chunk.has_first_token_timings) continue;
      metrics_.handoff_exposed_seconds.Observe(chunk.timings.transfer_exposed.seconds());
    }
    const std::shared_ptr<RouterChannel> stream = sessions_.Find(update.router);
    if (stream == nullptr) return;  // RouterLost is on its way
    v1::DecodeToRouter message;
    wire::ToProto(update.update, message.mutable_update());
    if (!stream->Send(std::move(message))) {
      stream->FinishWith(
          grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "the router reads too slowly"));
    }
  }
  void Send(scheduler::CallPrefill call) override { links_.Call(call); }
  void Send(scheduler::CancelPrefill cancel) override { links_.Cancel(cancel); }

  void OnStep(const scheduler::DecodeReport& report, const LandingReport& landing) override {
    inbox_.Flush();
    Record(report, landing);
    {
      std::lock_guard<std::mutex> lock(report_mutex_);
      report_ = report;
    }
    if (loop_->drained()) drained_.store(true, std::memory_order_release);
  }

 private:
  void Record(const scheduler::DecodeReport& report, const LandingReport& landing) {
    metrics_.worker.running_requests.Set(report.running);
    metrics_.worker.kv_pages_capacity.Set(report.total_pages);
    metrics_.worker.kv_pages_used.Set(report.total_pages - report.free_pages);
    metrics_.landing_requests.Set(report.landing);
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
  const DecodeMetrics metrics_;
  Clock& clock_;
  const std::unique_ptr<model::Runner> runner_;
  model::MeteredRunner metered_runner_;
  DecodeInbox queue_;
  // Below the queue, which its wake-ups touch until it is gone.
  const std::unique_ptr<transport::KvTransport> transport_;
  wire::DeferredInbox<DecodeEvent> inbox_;
  Sessions sessions_;
  PrefillLinks links_;
  DecodeService service_;
  std::unique_ptr<DecodeLoop> loop_;

  std::atomic<bool> stop_{false};
  std::atomic<bool> drained_{false};
  mutable std::mutex report_mutex_;
  scheduler::DecodeReport report_;  // guarded by report_mutex_
  std::optional<Thread> thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DecodeWorker>> DecodeWorker::Start(
    const DecodeWorkerOptions& options, Clock& clock, std::unique_ptr<model::Runner> runner,
    std::unique_ptr<transport::KvTransport> transport, ChannelFactory channels,
    const DecodeMetrics& metrics, const Log& log) {
  auto worker = std::make_unique<DecodeWorkerImpl>(
      options, clock, std::move(runner), std::move(transport), std::move(channels), metrics, log);
  BATON_RETURN_IF_ERROR(worker->Start());
  return worker;
}

}  // namespace baton::decode_worker
