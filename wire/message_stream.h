#ifndef BATON_WIRE_MESSAGE_STREAM_H_
#define BATON_WIRE_MESSAGE_STREAM_H_

// One end of a long-lived bidirectional gRPC stream as a pair of message flows: a bounded queue
// out, one message at a time in. The two ends differ only in how they begin and end, so one
// template serves both:
//   ServerStream<In, Out>  returned to gRPC by a service; ends with a status
//   ClientStream<In, Out>  started by its owner; ends when the server ends it or on Cancel
//
// Threads: Send and the ending calls from any thread; the On... functions are called by gRPC, one
// after the other for reads. A stream keeps itself alive until gRPC is done with it; whoever uses
// it longer holds a shared_ptr.

#include <grpcpp/grpcpp.h>
#include <grpcpp/support/client_callback.h>

#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <utility>

namespace baton::wire {

template <typename Reactor, typename Derived, typename In, typename Out>
class MessageStream : public Reactor, public std::enable_shared_from_this<Derived> {
 public:
  // Queues a message. False when the stream is over or the peer is so far behind that the queue is
  // full: the owner then ends the stream.
  [[nodiscard]] bool Send(Out&& message) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (ending_ || queue_.size() >= kMaxQueued) return false;
    queue_.push_back(std::move(message));
    Pump();
    return true;
  }

  // To be called once for each OnMessage, when the next one may come.
  void ReadNext() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!finished_) this->StartRead(&incoming_);
  }

 protected:
  // Far more than a healthy peer leaves unread: it reads each message within a step or two.
  static constexpr size_t kMaxQueued = 4096;

  // A message has come. The next one is not read before ReadNext.
  virtual void OnMessage(In& message) = 0;
  // Nothing comes any more, and nothing that was queued is sure to have been read. Called once.
  virtual void OnEnd(const grpc::Status& status) = 0;

  // Starts the next write, or ends the stream after the last; mutex_ is held.
  virtual void Pump() {
    if (writing_ || queue_.empty()) return;
    outgoing_ = std::move(queue_.front());
    queue_.pop_front();
    writing_ = true;
    this->StartWrite(&outgoing_);
  }

  void OnWriteDone(bool ok) override {
    std::lock_guard<std::mutex> lock(mutex_);
    writing_ = false;
    if (!ok) {
      ending_ = true;
      queue_.clear();
    }
    Pump();
  }

  std::mutex mutex_;
  bool ending_ = false;    // guarded by mutex_
  bool writing_ = false;   // guarded by mutex_
  bool finished_ = false;  // guarded by mutex_; a server told gRPC the end: start nothing more
  std::deque<Out> queue_;  // guarded by mutex_
  In incoming_;
  Out outgoing_;
  std::shared_ptr<Derived> self_;  // until OnDone
};

template <typename In, typename Out>
class ServerStream
    : public MessageStream<grpc::ServerBidiReactor<In, Out>, ServerStream<In, Out>, In, Out> {
 public:
  // Called by the service before it returns the stream to gRPC.
  void Begin() {
    this->self_ = this->shared_from_this();
    this->ReadNext();
  }

  // Ends the stream once what is queued was written. The first status counts.
  void FinishWith(const grpc::Status& status) {
    std::lock_guard<std::mutex> lock(this->mutex_);
    if (this->ending_) return;
    this->ending_ = true;
    status_ = status;
    Pump();
  }

  // As Send; a peer that is too far behind is ended.
  void SendOrFinish(Out&& message) {
    if (this->Send(std::move(message))) return;
    FinishWith(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "the peer reads too slowly"));
  }

 protected:
  void Pump() override {
    if (this->writing_) return;
    if (this->ending_ && this->queue_.empty()) {
      if (!std::exchange(this->finished_, true)) this->Finish(status_);
      return;
    }
    Base::Pump();
  }

  void OnReadDone(bool ok) override {
    if (ok) {
      this->OnMessage(this->incoming_);
    } else {
      Leave();
    }
  }
  void OnCancel() override { Leave(); }
  void OnDone() override {
    this->OnEnd(status_);
    this->self_.reset();
  }

 private:
  using Base = MessageStream<grpc::ServerBidiReactor<In, Out>, ServerStream<In, Out>, In, Out>;

  // The peer is gone or has said goodbye: nothing queued matters any more.
  void Leave() {
    std::lock_guard<std::mutex> lock(this->mutex_);
    this->ending_ = true;
    this->queue_.clear();
    Pump();
  }

  grpc::Status status_;  // guarded by mutex_ until finished_
};

template <typename In, typename Out>
class ClientStream
    : public MessageStream<grpc::ClientBidiReactor<Out, In>, ClientStream<In, Out>, In, Out> {
 public:
  // The call's context, to be used by the stub that binds this stream, before Begin.
  grpc::ClientContext* context() { return &context_; }

  // Called after the stub has bound the stream to a call.
  void Begin() {
    this->self_ = this->shared_from_this();
    this->AddHold();  // Send comes from other threads
    this->ReadNext();
    this->StartCall();
  }

  // Ends the stream soon; OnEnd follows. Any thread, any number of times, after Begin.
  void Cancel() { context_.TryCancel(); }

  // A message that cannot be queued would be lost: the stream ends, and OnEnd puts things right.
  void SendOrCancel(Out message) {
    if (!this->Send(std::move(message))) Cancel();
  }

 protected:
  void OnReadDone(bool ok) override {
    if (ok) {
      this->OnMessage(this->incoming_);
      return;
    }
    {
      std::lock_guard<std::mutex> lock(this->mutex_);
      this->ending_ = true;
      this->queue_.clear();
    }
    this->RemoveHold();
  }
  void OnDone(const grpc::Status& status) override {
    this->OnEnd(status);
    this->self_.reset();
  }

 private:
  grpc::ClientContext context_;
};

}  // namespace baton::wire

#endif  // BATON_WIRE_MESSAGE_STREAM_H_
