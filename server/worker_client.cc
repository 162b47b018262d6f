#include "server/worker_client.h"

#include <grpc/support/time.h>
#include <grpcpp/alarm.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <condition_variable>
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
    const absl::Status compatible = scheduler::CheckCompatible(shared_.options.identity, peer);
    if (!compatible.ok()) return compatible;
    if (peer.role != role_) {
      return absl::FailedPreconditionError(role_ + " worker expected at " + address_ + ", but a " +
                                           peer.role +
                                           " worker answers: check the router's lists of workers");
    }
    return absl::OkStatus();
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
      if (failure != last_failure_) {
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

// What ended a stream: our own reason, else gRPC's.
absl::Status EndOf(const absl::Status& own, const grpc::Status& status) {
  if (!own.ok()) return own;
  if (status.ok()) return absl::UnavailableError("the worker ended the stream");
  return FromGrpc(status);
}

// --- decode ranks

class DecodeStream final : public wire::ClientStream<v1::DecodeToRouter, v1::RouterToDecode> {
 public:
  DecodeStream(Link& link, const std::shared_ptr<grpc::Channel>& channel)
      : link_(link), stub_(v1::DecodeWorker::NewStub(channel)) {}

  void Start() {
    stub_->async()->Session(context(), this);
    Begin();
    v1::RouterToDecode hello;
    wire::ToProto(link_.shared().options.identity, hello.mutable_hello());
    if (!Send(std::move(hello))) Cancel();
  }

 private:
  void OnMessage(v1::DecodeToRouter& message) override {
    if (message.has_hello()) {
      identity_ = wire::FromProto(message.hello());
      refusal_ = link_.Hello(identity_);
      if (!refusal_.ok()) Cancel();
      ReadNext();
      return;
    }
    scheduler::DecodeUpdate update = wire::FromProto(message.update());
    link_.Update(update.status.draining, update.status.total_pages, update.status.free_pages,
                 update.status.running);
    RouterInbox& inbox = link_.shared().inbox;
    if (!joined_) {
      joined_ = true;
      link_.Joined();
      inbox.Push(scheduler::DecodeJoined{link_.id(), identity_, update.status});
    }
    inbox.Push(scheduler::DecodeUpdated{link_.id(), std::move(update), link_.shared().clock.Now()},
               [self = shared_from_this()] { self->ReadNext(); });
  }

  void OnEnd(const grpc::Status& status) override {
    const absl::Status end = EndOf(refusal_, status);
    if (joined_) link_.shared().inbox.Push(scheduler::DecodeLost{link_.id(), end});
    link_.Ended(end);
  }

  Link& link_;
  const std::unique_ptr<v1::DecodeWorker::Stub> stub_;
  scheduler::WorkerIdentity identity_;
  absl::Status refusal_;
  bool joined_ = false;
};

class DecodeLink final : public Link {
 public:
  using Link::Link;

  // A message that cannot be sent would be lost with its request: the stream ends, and DecodeLost
  // puts the request right.
  void Send(v1::RouterToDecode message) {
    const std::shared_ptr<DecodeStream> stream = Current();
    if (stream != nullptr && !stream->Send(std::move(message))) stream->Cancel();
  }

  void CancelStream() override {
    if (const std::shared_ptr<DecodeStream> stream = Current()) stream->Cancel();
  }

 private:
  void OpenStream(const std::shared_ptr<grpc::Channel>& channel) override {
    auto stream = std::make_shared<DecodeStream>(*this, channel);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stream_ = stream;
    }
    stream->Start();
  }
  std::shared_ptr<DecodeStream> Current() {
    std::lock_guard<std::mutex> lock(mutex_);
    return stream_;
  }

  std::mutex mutex_;
  std::shared_ptr<DecodeStream> stream_;  // guarded by mutex_; the latest, maybe over
};

// --- prefill workers

class PrefillStream final : public wire::ClientStream<v1::PrefillEvent, v1::WorkerIdentity> {
 public:
  PrefillStream(Link& link, const std::shared_ptr<grpc::Channel>& channel)
      : link_(link), stub_(v1::PrefillWorker::NewStub(channel)) {}

  void Start() {
    stub_->async()->WatchStatus(context(), this);
    Begin();
    v1::WorkerIdentity hello;
    wire::ToProto(link_.shared().options.identity, &hello);
    if (!Send(std::move(hello))) Cancel();
  }

 private:
  void OnMessage(v1::PrefillEvent& message) override {
    if (message.has_hello()) {
      identity_ = wire::FromProto(message.hello());
      refusal_ = link_.Hello(identity_);
      if (!refusal_.ok()) Cancel();
      ReadNext();
      return;
    }
    const scheduler::PrefillStatus status = wire::FromProto(message.status());
    link_.Update(status.draining, status.total_pages, status.free_pages, status.running);
    const auto read_next = [self = shared_from_this()] { self->ReadNext(); };
    if (joined_) {
      link_.shared().inbox.Push(scheduler::PrefillUpdated{link_.id(), status}, read_next);
      return;
    }
    joined_ = true;
    link_.Joined();
    link_.shared().inbox.Push(
        scheduler::PrefillJoined{link_.id(), link_.address(), identity_, status}, read_next);
  }

  void OnEnd(const grpc::Status& status) override {
    const absl::Status end = EndOf(refusal_, status);
    if (joined_) link_.shared().inbox.Push(scheduler::PrefillLost{link_.id(), end});
    link_.Ended(end);
  }

  Link& link_;
  const std::unique_ptr<v1::PrefillWorker::Stub> stub_;
  scheduler::WorkerIdentity identity_;
  absl::Status refusal_;
  bool joined_ = false;
};

class PrefillLink final : public Link {
 public:
  using Link::Link;

  void CancelStream() override {
    std::shared_ptr<PrefillStream> stream;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stream = stream_;
    }
    if (stream != nullptr) stream->Cancel();
  }

 private:
  void OpenStream(const std::shared_ptr<grpc::Channel>& channel) override {
    auto stream = std::make_shared<PrefillStream>(*this, channel);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stream_ = stream;
    }
    stream->Start();
  }

  std::mutex mutex_;
  std::shared_ptr<PrefillStream> stream_;  // guarded by mutex_; the latest, maybe over
};

// --- all of them

class WorkerClientImpl final : public WorkerClient {
 public:
  WorkerClientImpl(const WorkerClientOptions& options, const ChannelFactory& channels, Clock& clock,
                   FrontendInbox& inbox, Metrics& metrics, const Log& log)
      : shared_{options, clock, RouterInbox([&inbox](RouterEvent&& event) {
                  return inbox.TryPush(std::move(event));
                }),
                log} {
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

  Shared shared_;
  std::vector<std::unique_ptr<DecodeLink>> decode_;
  std::vector<std::unique_ptr<PrefillLink>> prefill_;
};

}  // namespace

std::unique_ptr<WorkerClient> WorkerClient::Start(const WorkerClientOptions& options,
                                                  const ChannelFactory& channels, Clock& clock,
                                                  FrontendInbox& inbox, Metrics& metrics,
                                                  const Log& log) {
  return std::make_unique<WorkerClientImpl>(options, channels, clock, inbox, metrics, log);
}

}  // namespace baton::server
