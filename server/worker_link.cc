#include "server/worker_link.h"

#include <grpcpp/grpcpp.h>

#include <functional>
#include <utility>

#include "proto/baton/v1/worker.grpc.pb.h"
#include "server/grpc_status.h"
#include "wire/message_stream.h"
#include "wire/worker_messages.h"

namespace baton::server {
namespace {

using scheduler::RouterEvent;

// What both kinds of streams do. A stream keeps its link alive.
template <typename In, typename Out>
class WorkerStream : public wire::ClientStream<In, Out> {
 public:
  // `on_end` lets go of the stream and tells the link.
  using OnEnded = std::function<void(const absl::Status&)>;
  WorkerStream(std::shared_ptr<WorkerLink> link, OnEnded on_ended)
      : link_(std::move(link)), on_ended_(std::move(on_ended)) {}

 protected:
  using Read = std::function<void()>;

  // An update; `first`: of this stream, the worker joins with it. Calls `read_next` once, when the
  // next one may come.
  virtual void OnUpdate(In& message, bool first, Read read_next) = 0;
  // The event for a worker that had joined.
  virtual RouterEvent LostEvent(const absl::Status& why) = 0;

  WorkerLink& link() { return *link_; }
  wire::DeferredInbox<RouterEvent>& inbox() { return link_->owner().inbox(); }
  const scheduler::WorkerIdentity& worker() const { return worker_; }

 private:
  void OnMessage(In& message) final {
    const auto read_next = [self = this->shared_from_this()] { self->ReadNext(); };
    if (message.has_hello()) {
      worker_ = wire::FromProto(message.hello());
      refusal_ = link_->owner().OnHello(*link_, worker_);
      if (!refusal_.ok()) this->Cancel();
      read_next();
      return;
    }
    const bool first = !std::exchange(joined_, true);
    if (first) link_->Joined();
    OnUpdate(message, first, read_next);
  }

  void OnEnd(const grpc::Status& status) final {
    absl::Status end = refusal_;
    if (end.ok()) {
      end = status.ok() ? absl::UnavailableError("the worker ended the stream") : FromGrpc(status);
    }
    if (joined_) inbox().Push(LostEvent(end));
    on_ended_(end);
  }

  const std::shared_ptr<WorkerLink> link_;
  const OnEnded on_ended_;
  scheduler::WorkerIdentity worker_;
  absl::Status refusal_;  // ours, of the worker's hello
  bool joined_ = false;
};

class DecodeStream final : public WorkerStream<v1::DecodeToRouter, v1::RouterToDecode> {
 public:
  DecodeStream(std::shared_ptr<WorkerLink> link, const std::shared_ptr<grpc::Channel>& channel,
               OnEnded on_ended)
      : WorkerStream(std::move(link), std::move(on_ended)),
        stub_(v1::DecodeWorker::NewStub(channel)) {}

  void Start() {
    stub_->async()->Session(context(), this);
    Begin();
    v1::RouterToDecode hello;
    wire::ToProto(link().owner().Own(), hello.mutable_hello());
    SendOrCancel(std::move(hello));
  }

 private:
  void OnUpdate(v1::DecodeToRouter& message, bool first, Read read_next) override {
    scheduler::DecodeUpdate update = wire::FromProto(message.update());
    const scheduler::DecodeStatus& status = update.status;
    link().Update(status.draining, status.total_pages, status.free_pages, status.running);
    if (first) inbox().Push(scheduler::DecodeJoined{link().id(), worker(), status});
    inbox().Push(
        scheduler::DecodeUpdated{link().id(), std::move(update), link().owner().clock().Now()},
        std::move(read_next));
  }
  RouterEvent LostEvent(const absl::Status& why) override {
    return scheduler::DecodeLost{link().id(), why};
  }

  const std::unique_ptr<v1::DecodeWorker::Stub> stub_;
};

class PrefillStream final : public WorkerStream<v1::PrefillEvent, v1::WorkerIdentity> {
 public:
  PrefillStream(std::shared_ptr<WorkerLink> link, const std::shared_ptr<grpc::Channel>& channel,
                OnEnded on_ended)
      : WorkerStream(std::move(link), std::move(on_ended)),
        stub_(v1::PrefillWorker::NewStub(channel)) {}

  void Start() {
    stub_->async()->WatchStatus(context(), this);
    Begin();
    v1::WorkerIdentity hello;
    wire::ToProto(link().owner().Own(), &hello);
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

// A link with its stream, while there is one.
template <typename Stream>
class LinkOf final : public WorkerLink {
 public:
  LinkOf(LinkOwner& owner, WorkerId id, WorkerRole role, std::string address,
         std::shared_ptr<grpc::Channel> channel)
      : WorkerLink(owner, id, role, std::move(address)), channel_(std::move(channel)) {}

  void Open() override {
    auto stream =
        std::make_shared<Stream>(shared_from_this(), channel_,
                                 [this](const absl::Status& status) { OnStreamEnded(status); });
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stream_ = stream;
    }
    stream->Start();
  }

  void CancelStream() override {
    if (const std::shared_ptr<Stream> stream = Current()) stream->Cancel();
  }

  void Send(const scheduler::StartRequest& start) override {
    if constexpr (std::is_same_v<Stream, DecodeStream>) {
      v1::RouterToDecode message;
      wire::ToProto(start, message.mutable_start());
      SendMessage(std::move(message));
    }
  }
  void Send(const scheduler::CancelRequest& cancel) override {
    if constexpr (std::is_same_v<Stream, DecodeStream>) {
      v1::RouterToDecode message;
      wire::ToProto(cancel.key, message.mutable_cancel()->mutable_key());
      SendMessage(std::move(message));
    }
  }

 private:
  template <typename Message>
  void SendMessage(Message message) {
    if (const std::shared_ptr<Stream> stream = Current()) stream->SendOrCancel(std::move(message));
  }

  void OnStreamEnded(const absl::Status& status) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stream_.reset();  // gRPC holds it until this returns
    }
    Ended(status);
  }
  std::shared_ptr<Stream> Current() {
    std::lock_guard<std::mutex> lock(mutex_);
    return stream_;
  }

  const std::shared_ptr<grpc::Channel> channel_;
  std::mutex mutex_;
  std::shared_ptr<Stream> stream_;  // guarded by mutex_
};

}  // namespace

const char* RoleName(WorkerRole role) { return role == WorkerRole::kDecode ? "decode" : "prefill"; }

std::shared_ptr<WorkerLink> WorkerLink::Create(LinkOwner& owner, WorkerId id, WorkerRole role,
                                               std::string address,
                                               std::shared_ptr<grpc::Channel> channel) {
  if (role == WorkerRole::kDecode) {
    return std::make_shared<LinkOf<DecodeStream>>(owner, id, role, std::move(address),
                                                  std::move(channel));
  }
  return std::make_shared<LinkOf<PrefillStream>>(owner, id, role, std::move(address),
                                                 std::move(channel));
}

WorkerLink::WorkerLink(LinkOwner& owner, WorkerId id, WorkerRole role, std::string address)
    : owner_(owner), id_(id), role_(role), address_(std::move(address)) {
  summary_.role = RoleName(role);
  summary_.instance = address_;
}

WorkerSummary WorkerLink::Summary() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return summary_;
}

void WorkerLink::Joined() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    summary_.connected = true;
  }
  owner_.OnJoined(*this);
}

void WorkerLink::Update(bool draining, int32_t total_pages, int32_t free_pages, int32_t running) {
  std::lock_guard<std::mutex> lock(mutex_);
  summary_.draining = draining;
  summary_.total_pages = total_pages;
  summary_.free_pages = free_pages;
  summary_.running = running;
}

void WorkerLink::Ended(const absl::Status& status) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    summary_.connected = false;
  }
  owner_.OnEnded(*this, status);
}

}  // namespace baton::server
