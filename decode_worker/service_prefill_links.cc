#include "decode_worker/service_prefill_links.h"

#include <grpcpp/grpcpp.h>

#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "proto/baton/v1/worker.grpc.pb.h"
#include "scheduler/identity.h"
#include "wire/message_stream.h"
#include "wire/worker_messages.h"

namespace baton::decode_worker {

using scheduler::PrefillCallFailed;
using scheduler::PrefillReplied;

// One stream; it lives until gRPC is done with it, also when its address has a newer one.
class PrefillStream final : public wire::ClientStream<v1::PrefillToDecode, v1::DecodeToPrefill> {
 public:
  PrefillStream(PrefillLinks& links, std::string address, std::shared_ptr<grpc::Channel> channel)
      : links_(links), address_(std::move(address)), stub_(v1::PrefillWorker::NewStub(channel)) {}

  void Start() {
    stub_->async()->Session(context(), this);
    Begin();
    v1::DecodeToPrefill hello;
    wire::ToProto(links_.identity_.Get(), hello.mutable_hello());
    SendOrCancel(std::move(hello));
  }

  // False when the stream is over: the call is not open and gets no event from here.
  bool Call(const scheduler::PrefillCall& call) {
    {
      std::lock_guard<std::mutex> lock(calls_mutex_);
      if (over_) return false;
      open_calls_.insert(call.key);
    }
    v1::DecodeToPrefill message;
    wire::ToProto(call, message.mutable_call());
    SendOrCancel(std::move(message));
    return true;
  }

  void CancelCall(RequestKey key) {
    {
      std::lock_guard<std::mutex> lock(calls_mutex_);
      if (open_calls_.count(key) == 0) return;
    }
    v1::DecodeToPrefill message;
    wire::ToProto(key, message.mutable_cancel()->mutable_key());
    SendOrCancel(std::move(message));
  }

 private:
  void OnMessage(v1::PrefillToDecode& message) override {
    if (message.has_hello()) {
      mismatch_ =
          scheduler::CheckCompatible(links_.identity_.Get(), wire::FromProto(message.hello()));
      if (!mismatch_.ok()) ClientStream::Cancel();
      ReadNext();
      return;
    }
    scheduler::PrefillReply reply = wire::FromProto(message.reply());
    {
      std::lock_guard<std::mutex> lock(calls_mutex_);
      if (open_calls_.erase(reply.key) == 0) {
        ReadNext();
        return;
      }
    }
    links_.inbox_.Push(PrefillReplied{std::move(reply), links_.clock_.Now()},
                       [self = shared_from_this()] { self->ReadNext(); });
  }

  void OnEnd(const grpc::Status& status) override {
    std::set<RequestKey> failed;
    {
      std::lock_guard<std::mutex> lock(calls_mutex_);
      over_ = true;
      failed.swap(open_calls_);
    }
    absl::Status reason = mismatch_;
    if (reason.ok()) {
      // A stream that ends well has still ended under its calls.
      reason =
          status.error_code() == grpc::StatusCode::FAILED_PRECONDITION
              ? absl::FailedPreconditionError(status.error_message())
              : absl::UnavailableError(absl::StrCat(
                    "prefill worker ", address_,
                    " is lost: ", status.ok() ? "it ended the stream" : status.error_message()));
    }
    if (!links_.closing_.load(std::memory_order_acquire)) {
      links_.log_.Warning("stream to prefill worker ended",
                          {{"prefill", address_},
                           {"open_calls", failed.size()},
                           {"cause", std::string(reason.message())}});
    }
    for (const RequestKey& key : failed) {
      links_.inbox_.Push(PrefillCallFailed{key, reason, /*worker_lost=*/true});
    }
    links_.Ended(address_, this);
  }

  PrefillLinks& links_;
  const std::string address_;
  const std::unique_ptr<v1::PrefillWorker::Stub> stub_;
  absl::Status mismatch_;  // of the identities; read and written by gRPC's reactions only

  std::mutex calls_mutex_;
  bool over_ = false;                // guarded by calls_mutex_
  std::set<RequestKey> open_calls_;  // guarded by calls_mutex_
};

PrefillLinks::PrefillLinks(const wire::OwnIdentity& identity, int32_t max_workers,
                           wire::ChannelFactory channels, Clock& clock,
                           wire::DeferredInbox<scheduler::DecodeEvent>& inbox, const Log& log)
    : identity_(identity),
      max_workers_(static_cast<size_t>(max_workers)),
      channels_(std::move(channels)),
      clock_(clock),
      inbox_(inbox),
      log_(log) {}

PrefillLinks::~PrefillLinks() {
  std::lock_guard<std::mutex> lock(mutex_);
  BATON_CHECK_EQ(open_streams_, 0);
}

void PrefillLinks::Call(const scheduler::CallPrefill& call) {
  // A stream that just ended may still stand in the table: one more try opens its successor.
  for (int attempt = 0; attempt < 2; ++attempt) {
    const std::shared_ptr<PrefillStream> stream = Open(call.address);
    if (stream == nullptr) break;
    if (stream->Call(call.call)) return;
    Ended(call.address, nullptr);
  }
  inbox_.Push(PrefillCallFailed{
      call.call.key,
      absl::ResourceExhaustedError(absl::StrCat("no stream to prefill worker ", call.address)),
      /*worker_lost=*/true});
}

void PrefillLinks::Cancel(const scheduler::CancelPrefill& cancel) {
  std::shared_ptr<PrefillStream> stream;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = streams_.find(cancel.address);
    if (found == streams_.end()) return;
    stream = found->second;
  }
  stream->CancelCall(cancel.key);
}

std::shared_ptr<PrefillStream> PrefillLinks::Open(const std::string& address) {
  std::shared_ptr<PrefillStream> stream;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = streams_.find(address);
    if (found != streams_.end()) return found->second;
    if (streams_.size() >= max_workers_) return nullptr;
    if (channels_made_.size() >= max_workers_) {
      std::erase_if(channels_made_,
                    [&](const auto& entry) { return !streams_.contains(entry.first); });
    }
    std::shared_ptr<grpc::Channel>& channel = channels_made_[address];
    if (channel == nullptr) channel = channels_(address);
    stream = std::make_shared<PrefillStream>(*this, address, channel);
    streams_.emplace(address, stream);
    ++open_streams_;
  }
  stream->Start();
  return stream;
}

// `stream` has ended (null: the one in the table has, and says so itself later).
void PrefillLinks::Ended(const std::string& address, const PrefillStream* stream) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = streams_.find(address);
  if (found != streams_.end() && (stream == nullptr || found->second.get() == stream)) {
    streams_.erase(found);
  }
  if (stream == nullptr) return;
  --open_streams_;
  all_ended_.notify_all();
}

void PrefillLinks::CloseAll() {
  closing_.store(true, std::memory_order_release);
  std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& [address, stream] : streams_) stream->ClientStream::Cancel();
}

void PrefillLinks::WaitUntilClosed() {
  std::unique_lock<std::mutex> lock(mutex_);
  all_ended_.wait(lock, [this] { return open_streams_ == 0; });
}

}  // namespace baton::decode_worker
