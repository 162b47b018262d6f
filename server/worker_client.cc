#include "server/worker_client.h"

#include <grpc/support/time.h>
#include <grpcpp/alarm.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "proto/baton/v1/worker.grpc.pb.h"
#include "scheduler/identity.h"
#include "server/grpc_status.h"
#include "wire/deferred_inbox.h"
#include "wire/message_stream.h"
#include "wire/worker_messages.h"

namespace baton::server {
namespace {

using scheduler::RouterEvent;
using RouterInbox = wire::DeferredInbox<RouterEvent>;

constexpr Duration kFirstBackoff = Duration::Millis(100);
constexpr Duration kMaxBackoff = Duration::Seconds(2);
constexpr Duration kMismatchBackoff = Duration::Seconds(5);

// What all links share.
struct Shared {
  const WorkerClientOptions options;
  Clock& clock;
  RouterInbox inbox;
  const Log log;

  std::mutex mutex;
  std::condition_variable idle;
  int open = 0;          // guarded by mutex: streams and timers that gRPC still works on
  bool closing = false;  // guarded by mutex
  // What every worker must match: the router's own identity, completed by the first worker's.
  scheduler::WorkerIdentity agreed;  // guarded by mutex

  // FAILED_PRECONDITION when `worker` does not match.
  absl::Status Agree(const scheduler::WorkerIdentity& worker) {
    std::lock_guard<std::mutex> lock(mutex);
    absl::Status compatible = scheduler::CheckCompatible(agreed, worker);
    if (!compatible.ok()) return compatible;
    const bool learns = agreed.model_hash.empty();
    scheduler::Adopt(worker, agreed);
    if (learns)
      agreed.instance += " (with the model of " + worker.role + " " + worker.instance + ")";
    return absl::OkStatus();
  }
  scheduler::WorkerIdentity Agreed() {
    std::lock_guard<std::mutex> lock(mutex);
    return agreed;
  }

  bool Closing() {
    std::lock_guard<std::mutex> lock(mutex);
    return closing;
  }
  // Counts one more; false when closing.
  bool Acquire() {
    std::lock_guard<std::mutex> lock(mutex);
    if (closing) return false;
    ++open;
    return true;
  }
  void Drop() {
    std::lock_guard<std::mutex> lock(mutex);
    --open;
    idle.notify_all();
  }
};

// A worker's address and what is known of it. The stream changes, the link stays.
class Link {
 public:
  Link(Shared& shared, WorkerId id, std::string role, std::string address,
       std::shared_ptr<grpc::Channel> channel, GaugeHandle up)
      : shared_(shared),
        id_(id),
        role_(std::move(role)),
        address_(std::move(address)),
        channel_(std::move(channel)),
        up_(up) {}
  virtual ~Link() = default;

  Shared& shared() { return shared_; }
  WorkerId id() const { return id_; }
  const std::string& address() const { return address_; }

  // Opens a stream now. Each is counted in `shared` until Ended.
  void Connect() {
    if (shared_.Acquire()) OpenStream(channel_);
  }

  void CancelTimer() { alarm_.Cancel(); }
  virtual void CancelStream() = 0;

  // The stream's first message. OK: go on.
  absl::Status Hello(const scheduler::WorkerIdentity& peer) {
    if (peer.role != role_) {
      return absl::FailedPreconditionError(role_ + " worker expected at " + address_ + ", but a " +
                                           peer.role +
                                           " worker answers: check the router's lists of workers");
    }
    return shared_.Agree(peer);
  }

  void Joined() {
    up_.Set(1);
    shared_.log.Info("worker connected", {{"role", role_}, {"worker", address_}});
    std::lock_guard<std::mutex> lock(mutex_);
    backoff_ = kFirstBackoff;
    last_failure_.clear();
    summary_.connected = true;
  }

  void Update(bool draining, int32_t total_pages, int32_t free_pages, int32_t running) {
    std::lock_guard<std::mutex> lock(mutex_);
    summary_.draining = draining;
    summary_.total_pages = total_pages;
    summary_.free_pages = free_pages;
    summary_.running = running;
  }

  // The stream is over, and so is what is counted for it.
  void Ended(const absl::Status& status) {
    up_.Set(0);
    Duration wait;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      summary_.connected = false;
      wait = absl::IsFailedPrecondition(status) ? kMismatchBackoff : backoff_;
      backoff_ = std::min(backoff_ * 2, kMaxBackoff);
      // One line for each new cause, not one for each try.
      const std::string failure(status.message().data(), status.message().size());
      if (failure != last_failure_ && !shared_.Closing()) {
        last_failure_ = failure;
        shared_.log.Warning("worker not connected",
                            {{"role", role_}, {"worker", address_}, {"cause", failure}});
      }
    }
    if (shared_.Acquire()) {
      alarm_.Set(gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                              gpr_time_from_nanos(wait.nanos(), GPR_TIMESPAN)),
                 [this](bool ok) {
                   if (ok) Connect();
                   shared_.Drop();
                 });
    }
    shared_.Drop();
  }

  WorkerSummary Summary() const {
    std::lock_guard<std::mutex> lock(mutex_);
    WorkerSummary summary = summary_;
    summary.role = role_;
    summary.instance = address_;
    return summary;
  }

 protected:
  virtual void OpenStream(const std::shared_ptr<grpc::Channel>& channel) = 0;

 private:
  Shared& shared_;
  const WorkerId id_;
  const std::string role_;
  const std::string address_;
  const std::shared_ptr<grpc::Channel> channel_;
  const GaugeHandle up_;
  grpc::Alarm alarm_;

  mutable std::mutex mutex_;
  Duration backoff_ = kFirstBackoff;  // guarded by mutex_
  std::string last_failure_;          // guarded by mutex_
  WorkerSummary summary_;             // guarded by mutex_
};

// What both kinds of streams do: hello both ways, then updates for the link.
template <typename In, typename Out>
class WorkerStream : public wire::ClientStream<In, Out> {
 public:
  explicit WorkerStream(Link& link) : link_(link) {}

 protected:
  using Read = std::function<void()>;

  // An update; `first`: of this stream, the worker joins with it. Calls `read_next` once, when the
  // next one may come.
  virtual void OnUpdate(In& message, bool first, Read read_next) = 0;
  // The event for a worker that had joined.
  virtual RouterEvent LostEvent(const absl::Status& why) = 0;

  Link& link() { return link_; }
  RouterInbox& inbox() { return link_.shared().inbox; }
  // What the router says of itself: with what it has learnt, so that a worker that differs refuses
  // it and says how.
  scheduler::WorkerIdentity router() const { return link_.shared().Agreed(); }
  const scheduler::WorkerIdentity& worker() const { return worker_; }

 private:
  void OnMessage(In& message) final {
    const auto read_next = [self = this->shared_from_this()] { self->ReadNext(); };
    if (message.has_hello()) {
      worker_ = wire::FromProto(message.hello());
      refusal_ = link_.Hello(worker_);
      if (!refusal_.ok()) this->Cancel();
      read_next();
      return;
    }
    const bool first = !std::exchange(joined_, true);
    if (first) link_.Joined();
    OnUpdate(message, first, read_next);
  }

  void OnEnd(const grpc::Status& status) final {
    absl::Status end = refusal_;
    if (end.ok()) {
      end = status.ok() ? absl::UnavailableError("the worker ended the stream") : FromGrpc(status);
    }
    if (joined_) inbox().Push(LostEvent(end));
    link_.Ended(end);
  }

  Link& link_;
  scheduler::WorkerIdentity worker_;
  absl::Status refusal_;  // ours, of the worker's hello
  bool joined_ = false;
};

class DecodeStream final : public WorkerStream<v1::DecodeToRouter, v1::RouterToDecode> {
 public:
  DecodeStream(Link& link, const std::shared_ptr<grpc::Channel>& channel)
      : WorkerStream(link), stub_(v1::DecodeWorker::NewStub(channel)) {}

  void Start() {
    stub_->async()->Session(context(), this);
    Begin();
    v1::RouterToDecode hello;
    wire::ToProto(router(), hello.mutable_hello());
    SendOrCancel(std::move(hello));
  }

 private:
  void OnUpdate(v1::DecodeToRouter& message, bool first, Read read_next) override {
    scheduler::DecodeUpdate update = wire::FromProto(message.update());
    const scheduler::DecodeStatus& status = update.status;
    link().Update(status.draining, status.total_pages, status.free_pages, status.running);
    if (first) inbox().Push(scheduler::DecodeJoined{link().id(), worker(), status});
    inbox().Push(
        scheduler::DecodeUpdated{link().id(), std::move(update), link().shared().clock.Now()},
        std::move(read_next));
  }
  RouterEvent LostEvent(const absl::Status& why) override {
    return scheduler::DecodeLost{link().id(), why};
  }

  const std::unique_ptr<v1::DecodeWorker::Stub> stub_;
};

class PrefillStream final : public WorkerStream<v1::PrefillEvent, v1::WorkerIdentity> {
 public:
  PrefillStream(Link& link, const std::shared_ptr<grpc::Channel>& channel)
      : WorkerStream(link), stub_(v1::PrefillWorker::NewStub(channel)) {}

  void Start() {
    stub_->async()->WatchStatus(context(), this);
    Begin();
    v1::WorkerIdentity hello;
    wire::ToProto(router(), &hello);
    SendOrCancel(std::move(hello));
  }

 private:
  void OnUpdate(v1::PrefillEvent& message, bool first, Read read_next) override {
    const scheduler::PrefillStatus status = wire::FromProto(message.status());
    link().Update(status.draining, status.total_pages, status.free_pages, status.running);
    RouterEvent event = scheduler::PrefillUpdated{link().id(), status};
    if (first) {
      event = scheduler::PrefillJoined{link().id(), link().address(), worker(), status};
    }
    inbox().Push(std::move(event), std::move(read_next));
  }
  RouterEvent LostEvent(const absl::Status& why) override {
    return scheduler::PrefillLost{link().id(), why};
  }

  const std::unique_ptr<v1::PrefillWorker::Stub> stub_;
};

// A link with its latest stream, which may be over.
template <typename Stream>
class LinkOf final : public Link {
 public:
  using Link::Link;

  // A message that cannot be sent would be lost with its request: the stream ends, and its
  // LostEvent puts the request right.
  template <typename Message>
  void Send(Message message) {
    if (const std::shared_ptr<Stream> stream = Current()) stream->SendOrCancel(std::move(message));
  }

  void CancelStream() override {
    if (const std::shared_ptr<Stream> stream = Current()) stream->Cancel();
  }

 private:
  void OpenStream(const std::shared_ptr<grpc::Channel>& channel) override {
    auto stream = std::make_shared<Stream>(*this, channel);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stream_ = stream;
    }
    stream->Start();
  }
  std::shared_ptr<Stream> Current() {
    std::lock_guard<std::mutex> lock(mutex_);
    return stream_;
  }

  std::mutex mutex_;
  std::shared_ptr<Stream> stream_;  // guarded by mutex_
};
using DecodeLink = LinkOf<DecodeStream>;
using PrefillLink = LinkOf<PrefillStream>;

// --- all of them

class WorkerClientImpl final : public WorkerClient {
 public:
  WorkerClientImpl(const WorkerClientOptions& options, const wire::ChannelFactory& channels,
                   Clock& clock, FrontendInbox& inbox, Metrics& metrics, const Log& log)
      : shared_{options, clock, RouterInbox([&inbox](RouterEvent&& event) {
                  return inbox.TryPush(std::move(event));
                }),
                log} {
    shared_.agreed = options.identity;
    // Decode ranks have the ids from 1, prefill workers those behind.
    uint32_t next = 1;
    for (const std::string& address : options.decode_workers) {
      decode_.push_back(std::make_unique<DecodeLink>(shared_, WorkerId(next++), "decode", address,
                                                     channels(address),
                                                     metrics.WorkerUp("decode", address)));
    }
    for (const std::string& address : options.prefill_workers) {
      prefill_.push_back(std::make_unique<PrefillLink>(shared_, WorkerId(next++), "prefill",
                                                       address, channels(address),
                                                       metrics.WorkerUp("prefill", address)));
    }
    for (const auto& link : decode_) link->Connect();
    for (const auto& link : prefill_) link->Connect();
  }

  ~WorkerClientImpl() override {
    {
      std::lock_guard<std::mutex> lock(shared_.mutex);
      shared_.closing = true;
    }
    shared_.inbox.Close();
    const auto close = [](auto& links) {
      for (const auto& link : links) {
        link->CancelTimer();
        link->CancelStream();
      }
    };
    // A stream that was just being opened is not seen by the first round.
    std::unique_lock<std::mutex> lock(shared_.mutex);
    while (shared_.open > 0) {
      lock.unlock();
      close(decode_);
      close(prefill_);
      lock.lock();
      shared_.idle.wait_for(lock, std::chrono::milliseconds(20),
                            [this] { return shared_.open == 0; });
    }
  }

  void Send(const scheduler::SendStart& start) override {
    v1::RouterToDecode message;
    wire::ToProto(start.request, message.mutable_start());
    DecodeOf(start.decode).Send(std::move(message));
  }
  void Send(const scheduler::SendCancel& cancel) override {
    v1::RouterToDecode message;
    wire::ToProto(cancel.request.key, message.mutable_cancel()->mutable_key());
    DecodeOf(cancel.decode).Send(std::move(message));
  }

  void Refuse(const scheduler::RefuseWorker& refusal) override {
    shared_.log.Warning("worker refused", {{"worker", LinkOf(refusal.worker).address()},
                                           {"cause", std::string(refusal.status.message())}});
    LinkOf(refusal.worker).CancelStream();
  }

  void Flush() override { shared_.inbox.Flush(); }

  scheduler::WorkerIdentity Agreed() const override { return shared_.Agreed(); }

  std::vector<WorkerSummary> Summaries() const override {
    std::vector<WorkerSummary> summaries;
    for (const auto& link : decode_) summaries.push_back(link->Summary());
    for (const auto& link : prefill_) summaries.push_back(link->Summary());
    return summaries;
  }

 private:
  DecodeLink& DecodeOf(WorkerId id) {
    BATON_CHECK(id.value() >= 1 && id.value() <= decode_.size());
    return *decode_[id.value() - 1];
  }
  Link& LinkOf(WorkerId id) {
    if (id.value() <= decode_.size()) return DecodeOf(id);
    const size_t index = id.value() - 1 - decode_.size();
    BATON_CHECK_LT(index, prefill_.size());
    return *prefill_[index];
  }

  mutable Shared shared_;
  std::vector<std::unique_ptr<DecodeLink>> decode_;
  std::vector<std::unique_ptr<PrefillLink>> prefill_;
};

}  // namespace

std::unique_ptr<WorkerClient> WorkerClient::Start(const WorkerClientOptions& options,
                                                  const wire::ChannelFactory& channels,
                                                  Clock& clock, FrontendInbox& inbox,
                                                  Metrics& metrics, const Log& log) {
  return std::make_unique<WorkerClientImpl>(options, channels, clock, inbox, metrics, log);
}

}  // namespace baton::server
