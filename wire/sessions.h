#ifndef BATON_WIRE_SESSIONS_H_
#define BATON_WIRE_SESSIONS_H_

// The serving end of the streams between members of the cluster, as both workers have it: the peer
// says hello with its identity, is refused when the two do not match, is greeted in turn, and then
// sends what becomes events in the worker's inbox.
//
//   Sessions    the open streams by id, and what they need of their worker
//   PeerStream  one of them

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "base/clock.h"
#include "base/log.h"
#include "scheduler/identity.h"
#include "wire/deferred_inbox.h"
#include "wire/message_stream.h"
#include "wire/own_identity.h"
#include "wire/worker_messages.h"

namespace baton::wire {

// OK when `peer` may work with `mine`; else the status to end its stream with (and a line in the
// log when the two do not match).
inline grpc::Status CheckPeer(const scheduler::WorkerIdentity& mine,
                              const scheduler::WorkerIdentity& peer, const Log& log) {
  if (mine.instance.empty()) {
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "the worker is starting; try again");
  }
  const absl::Status compatible = scheduler::CheckCompatible(mine, peer);
  if (compatible.ok()) return grpc::Status::OK;
  const std::string why(compatible.message().data(), compatible.message().size());
  log.Warning("refused a peer", {{"role", peer.role}, {"peer", peer.instance}, {"cause", why}});
  return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, why);
}

// Thread-safe. `Id` is a StrongId; In and Out are the messages of the streams, Event the inbox's.
template <typename Id, typename Event, typename In, typename Out>
class Sessions {
 public:
  using Stream = ServerStream<In, Out>;

  // The references must outlive the object and its streams.
  Sessions(const OwnIdentity& identity, Clock& clock, DeferredInbox<Event>& inbox, const Log& log)
      : identity(identity), clock(clock), inbox(inbox), log(log) {}

  const OwnIdentity& identity;
  Clock& clock;
  DeferredInbox<Event>& inbox;
  const Log log;

  Id Add(std::shared_ptr<Stream> stream) {
    std::lock_guard<std::mutex> lock(mutex_);
    const Id id(next_id_++);
    streams_.emplace(id, std::move(stream));
    return id;
  }
  void Remove(Id id) {
    std::lock_guard<std::mutex> lock(mutex_);
    streams_.erase(id);
  }

  // Drops the message when the stream is gone: its end is an event of its own. A peer that is too
  // far behind is ended.
  void Send(Id id, Out message) {
    std::shared_ptr<Stream> stream;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      const auto found = streams_.find(id);
      if (found == streams_.end()) return;
      stream = found->second;
    }
    stream->SendOrFinish(std::move(message));
  }

  // Ends all streams once what is queued on them was written.
  void FinishAll(const grpc::Status& status) {
    std::map<Id, std::shared_ptr<Stream>> streams;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      streams = streams_;
    }
    for (const auto& [id, stream] : streams) stream->FinishWith(status);
  }

 private:
  std::mutex mutex_;
  typename Id::Value next_id_ = 1;                 // guarded by mutex_
  std::map<Id, std::shared_ptr<Stream>> streams_;  // guarded by mutex_
};

// In and Out have `hello` for their first message, a WorkerIdentity.
template <typename Id, typename Event, typename In, typename Out>
class PeerStream : public ServerStream<In, Out> {
 public:
  using PeerSessions = Sessions<Id, Event, In, Out>;
  explicit PeerStream(PeerSessions& sessions) : sessions_(sessions) {}

 protected:
  // What a message other than hello means to the loop, if anything.
  virtual std::optional<Event> ToEvent(In& message) = 0;
  // The peer was greeted; the stream has its id.
  virtual void OnJoined() {}
  // A stream that had joined has ended.
  virtual Event LostEvent() = 0;

  PeerSessions& sessions() { return sessions_; }
  Id id() const { return id_; }  // from OnJoined on

 private:
  void OnMessage(In& message) final {
    if (message.has_hello() != !greeted_) {
      this->FinishWith(grpc::Status(grpc::StatusCode::INVALID_ARGUMENT,
                                    "the first message must be hello, and no other"));
    } else if (message.has_hello()) {
      Greet(FromProto(message.hello()));
    } else if (std::optional<Event> event = ToEvent(message)) {
      sessions_.inbox.Push(*std::move(event),
                           [self = this->shared_from_this()] { self->ReadNext(); });
      return;
    }
    this->ReadNext();
  }

  void Greet(const scheduler::WorkerIdentity& peer) {
    const scheduler::WorkerIdentity own = sessions_.identity.Get();
    const grpc::Status compatible = CheckPeer(own, peer, sessions_.log);
    if (!compatible.ok()) {
      this->FinishWith(compatible);
      return;
    }
    greeted_ = true;
    peer_ = peer;
    Out hello;
    ToProto(own, hello.mutable_hello());
    if (!this->Send(std::move(hello))) return;  // over already
    id_ = sessions_.Add(this->shared_from_this());
    in_table_ = true;
    sessions_.log.Info("peer connected", {{"role", peer_.role}, {"peer", peer_.instance}});
    OnJoined();
  }

  void OnEnd(const grpc::Status&) final {
    if (!in_table_) return;
    sessions_.Remove(id_);
    sessions_.log.Info("peer disconnected", {{"role", peer_.role}, {"peer", peer_.instance}});
    sessions_.inbox.Push(LostEvent());
  }

  PeerSessions& sessions_;
  // Used by gRPC's reactions only, which come one after the other.
  bool greeted_ = false;
  bool in_table_ = false;
  Id id_;
  scheduler::WorkerIdentity peer_;
};

}  // namespace baton::wire

#endif  // BATON_WIRE_SESSIONS_H_
