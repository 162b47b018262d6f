#ifndef BATON_SERVER_WORKER_LINK_H_
#define BATON_SERVER_WORKER_LINK_H_

// One address of a worker, and the stream to it: opened when its owner says so, hello both ways,
// then updates, which become events in the router's inbox. A link opens one stream after the other;
// when and whether again is its owner's decision (server/worker_client.cc).
//
// Threads: any. The owner's functions are called on gRPC's threads, for each link one after the
// other, and must not call back into the link's Open.

#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "base/clock.h"
#include "base/ids.h"
#include "scheduler/messages.h"
#include "scheduler/router.h"
#include "wire/deferred_inbox.h"

namespace grpc {
class Channel;
}  // namespace grpc

namespace baton::server {

enum class WorkerRole : uint8_t { kDecode, kPrefill };

// "decode" or "prefill".
const char* RoleName(WorkerRole role);

// One worker as GetServerInfo shows it.
struct WorkerSummary {
  std::string role;
  std::string instance;
  bool connected = false;
  bool draining = false;
  int32_t total_pages = 0;
  int32_t free_pages = 0;
  int32_t running = 0;
};

class WorkerLink;

// What a link needs of whoever has it. Outlives every stream.
class LinkOwner {
 public:
  virtual ~LinkOwner() = default;

  // What the router says of itself.
  virtual scheduler::WorkerIdentity Own() = 0;
  // The first message of a stream. Not OK: the stream is cancelled and ends with this status.
  virtual absl::Status OnHello(WorkerLink& link, const scheduler::WorkerIdentity& worker) = 0;
  // The first update is here.
  virtual void OnJoined(WorkerLink& link) = 0;
  // The stream is over; the link holds it no longer. The last call for it.
  virtual void OnEnded(WorkerLink& link, const absl::Status& status) = 0;

  virtual wire::DeferredInbox<scheduler::RouterEvent>& inbox() = 0;
  virtual Clock& clock() = 0;
};

class WorkerLink : public std::enable_shared_from_this<WorkerLink> {
 public:
  // `owner` must outlive the link's streams.
  static std::shared_ptr<WorkerLink> Create(LinkOwner& owner, WorkerId id, WorkerRole role,
                                            std::string address,
                                            std::shared_ptr<grpc::Channel> channel);
  virtual ~WorkerLink() = default;

  WorkerId id() const { return id_; }
  WorkerRole role() const { return role_; }
  const std::string& address() const { return address_; }

  // Opens a stream; none may be open.
  virtual void Open() = 0;
  // Ends the stream, if there is one, soon. OnEnded follows.
  virtual void CancelStream() = 0;

  // To a decode rank, else without effect. A message that cannot be sent would be lost with its
  // request: the stream ends then, and its LostEvent puts the request right.
  virtual void Send(const scheduler::StartRequest& start) = 0;
  virtual void Send(const scheduler::CancelRequest& cancel) = 0;

  // What the last stream was told; `connected` says whether it is still there.
  WorkerSummary Summary() const;

  // For the streams.
  LinkOwner& owner() { return owner_; }
  void Joined();
  void Update(bool draining, int32_t total_pages, int32_t free_pages, int32_t running);

 protected:
  WorkerLink(LinkOwner& owner, WorkerId id, WorkerRole role, std::string address);
  // Of the stream, which has let go of it.
  void Ended(const absl::Status& status);

 private:
  LinkOwner& owner_;
  const WorkerId id_;
  const WorkerRole role_;
  const std::string address_;

  mutable std::mutex mutex_;
  WorkerSummary summary_;  // guarded by mutex_
};

}  // namespace baton::server

#endif  // BATON_SERVER_WORKER_LINK_H_
