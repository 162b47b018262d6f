#ifndef BATON_TRANSPORT_UCX_UCX_ENGINE_H_
#define BATON_TRANSPORT_UCX_UCX_ENGINE_H_

// The progress thread of a UCX endpoint and all that it owns: connections, sends and receives under
// way. The loop thread talks to it through Submit and TakeEvents only.
//
// States. A Peer is a connection, shared by the transfers to one address; when it fails it is
// closed by force, which ends its sends, and forgotten: the next transfer connects anew. A Transfer
// lives from its kOpen to its kReleased. A Send lives from its command to UCX's completion
// callback; no payload is touched after that, so kPeerLost and kReleased wait for a transfer's
// sends. A receive is first an Announced message (UCX holds a descriptor of some bytes), then, once
// staging has room, a Receive into a staging buffer.
//
// Connections are made through a listening TCP port (UCX agrees on shared memory, RDMA or TCP over
// it) and each serves one direction. They share their fate with that socket: a peer that dies or
// closes is noticed at once on both sides, whatever carries the data.

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/thread.h"
#include "transport/staging_pool.h"
#include "transport/ucx/ucx_library.h"

namespace baton::transport {

// Active messages. All travel by rendezvous, whatever their size: so the receiver decides when it
// has room, and UCX 1.13's eager path, which fails while a connection changes from TCP to shared
// memory
// ("Invalid am_short_iov length"), is not used. A rendezvous has at least one byte: an empty
// payload travels as one byte that the receiver ignores.
//   data: header KvMessageHeader, payload of max(1, payload_bytes) bytes
//   notify: header uint32_t payload_bytes, payload of max(1, payload_bytes) bytes
inline constexpr unsigned kUcxDataId = 1;
inline constexpr unsigned kUcxNotifyId = 2;

struct UcxCommand {
  enum class Kind : uint8_t { kOpen, kPost, kNotify, kRelease };
  Kind kind = Kind::kOpen;
  TransferId transfer;
  std::string bytes;   // kOpen: the peer's address; kNotify: the message
  UcxAddress address;  // kOpen: the same, decoded
  uint64_t post_id = 0;
  KvMessageHeader header;
  std::span<const std::byte> payload;
  ucp_mem_h memory = nullptr;  // that holds the payload
};

struct UcxArrival {
  KvEvent event;  // its payload points into `buffer`
  StagingBuffer buffer;
};

class UcxEngine {
 public:
  static absl::StatusOr<std::unique_ptr<UcxEngine>> Create(const UcxOptions& options,
                                                           std::shared_ptr<Clock> clock);
  ~UcxEngine();
  UcxEngine(const UcxEngine&) = delete;
  UcxEngine& operator=(const UcxEngine&) = delete;

  // Ends the progress thread, all connections and the worker. Nothing may follow but the
  // destructor, which calls it where it was not.
  void Stop();

  // For the owner's loop thread; each is thread-safe.
  const std::string& address() const { return address_; }
  ucp_context_h context() const { return context_.get(); }
  void SetWakeup(std::function<void()> wakeup);
  void Submit(UcxCommand command);
  // At most `max` events, oldest first.
  void TakeEvents(size_t max, std::vector<UcxArrival>* out);
  // Staging was given back.
  void RoomFreed();
  uint32_t notifies_in_flight() const { return notifies_in_flight_.load(); }
  UcxCounters counters() const;
  uint64_t staging_in_use_bytes() const { return staging_.in_use_bytes(); }

 private:
  struct Peer {
    UcxEngine* engine = nullptr;
    std::string address;          // empty: it has connected to us
    ucp_ep_h endpoint = nullptr;  // null once it is being closed
    std::set<TransferId> transfers;
    Tick last_sent;             // when it last took something
    bool is_connected = false;  // it has taken something
    absl::Status failure;       // OK while it lives
  };
  struct Transfer {
    std::shared_ptr<Peer> peer;
    uint32_t sends = 0;  // under way
    bool released = false;
    bool lost_told = false;
  };
  struct Send {
    UcxEngine* engine = nullptr;
    UcxCommand command;          // keeps header and notify bytes where UCX reads them
    uint32_t notify_header = 0;  // likewise
    std::shared_ptr<Peer> peer;
    Tick started;
    std::list<Send>::iterator self;
  };
  struct Announced {
    KvEventKind kind = KvEventKind::kReceived;  // or kNotified
    KvMessageHeader header;                     // of a notify only payload_bytes
    size_t wire_bytes = 0;
    void* descriptor = nullptr;  // UCX's; ended by ucp_am_recv_data_nbx or ucp_am_data_release
  };
  struct Receive {
    UcxEngine* engine = nullptr;
    Announced message;
    StagingBuffer buffer;
    std::list<Receive>::iterator self;
  };
  struct Closing {
    ucs_status_ptr_t request = nullptr;
    std::shared_ptr<Peer> peer;  // UCX may hold its address until the request is done
  };

  UcxEngine(const UcxOptions& options, std::shared_ptr<Clock> clock);
  absl::Status Start();
  absl::Status SetHandlers();
  absl::Status Listen();

  // The progress thread's loop and its phases.
  void Run();
  bool RunCommands();
  bool Progress();
  void AcceptPeers();
  void CloseFailedPeers();
  void StartReceives();
  void CheckStalls();
  void ReapClosing();
  void PublishEvents();
  void Sleep();
  void FlushSends();
  void ShutDown();
  void CloseListener();
  void ProgressWhile(const std::function<bool()>& unfinished, Duration limit);

  void Execute(UcxCommand command);
  void Open(const UcxCommand& command);
  void StartSend(UcxCommand command);
  void FinishSend(Send* send, ucs_status_t status);
  ucs_status_t Announce(const Announced& message, const ucp_am_recv_param_t* param);
  void StartReceive(const Announced& message, StagingBuffer buffer);
  void FinishReceive(Receive* receive, ucs_status_t status);
  absl::StatusOr<std::shared_ptr<Peer>> Connect(const UcxCommand& open);
  absl::StatusOr<std::shared_ptr<Peer>> CreatePeer(ucp_ep_params_t* params);
  void FailPeer(Peer* peer, const absl::Status& status);
  void Settle(TransferId id);
  void Emit(KvEvent event);
  void WakeThread();
  void WakeOwner();

  // What UCX calls, inside Progress or inside the call that starts an operation.
  static void OnConnection(ucp_conn_request_h request, void* argument);
  static void OnPeerError(void* argument, ucp_ep_h endpoint, ucs_status_t status);
  static void OnSent(void* request, ucs_status_t status, void* user_data);
  static void OnReceived(void* request, ucs_status_t status, size_t length, void* user_data);
  static ucs_status_t OnData(void* argument, const void* header, size_t header_length, void* data,
                             size_t length, const ucp_am_recv_param_t* param);
  static ucs_status_t OnNotify(void* argument, const void* header, size_t header_length, void* data,
                               size_t length, const ucp_am_recv_param_t* param);
  static ucs_status_t OnUnknown(void* argument, const void* header, size_t header_length,
                                void* data, size_t length, const ucp_am_recv_param_t* param);

  const UcxOptions options_;
  const std::shared_ptr<Clock> clock_;
  UcxContext context_;
  StagingPool staging_;
  std::string address_;
  uint64_t host_id_ = 0;
  uint16_t port_ = 0;
  std::vector<IpInterface> interfaces_;
  int worker_fd_ = -1;   // UCX's, readable when the worker has something to do
  int command_fd_ = -1;  // an eventfd, ours

  // Between the threads.
  mutable std::mutex mutex_;
  std::vector<UcxCommand> commands_;                     // guarded by mutex_
  std::deque<UcxArrival> events_;                        // guarded by mutex_
  bool stopping_ = false;                                // guarded by mutex_
  std::shared_ptr<const std::function<void()>> wakeup_;  // guarded by mutex_
  std::atomic<bool> has_commands_{false};
  std::atomic<bool> starved_{false};  // messages wait for staging
  std::atomic<uint32_t> notifies_in_flight_{0};
  std::atomic<uint64_t> malformed_messages_{0};
  std::atomic<uint64_t> dropped_messages_{0};
  std::atomic<uint64_t> failed_receives_{0};
  std::atomic<uint64_t> peers_lost_{0};

  // The progress thread's own (the owner's before the thread starts and after it has ended).
  std::map<std::string, std::shared_ptr<Peer>> peers_;  // we have connected to; none has failed
  std::map<Peer*, std::shared_ptr<Peer>> inbound_;      // have connected to us; none has failed
  std::deque<ucp_conn_request_h> requests_;             // to be accepted, outside callbacks
  std::vector<std::shared_ptr<Peer>> failed_;           // to be closed, outside callbacks
  std::vector<Closing> closing_;
  std::map<TransferId, Transfer> transfers_;
  std::list<Send> sends_;
  std::list<Receive> receives_;
  std::deque<Announced> announced_;
  std::vector<UcxArrival> fresh_;  // not yet in events_
  bool wake_owner_ = false;        // without an event: staging is exhausted, the owner should Poll
  Tick next_check_;
  UcxWorker worker_;  // destroyed before what its callbacks touch
  ucp_listener_h listener_ = nullptr;

  std::optional<Thread> thread_;
};

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_UCX_UCX_ENGINE_H_
