#ifndef BATON_TRANSPORT_UCX_UCX_EXCHANGE_H_
#define BATON_TRANSPORT_UCX_UCX_EXCHANGE_H_

// The exchange between processes. It owns a UCX context and worker for one generation of one group.
// There is no progress thread: the loop's thread drives UCX inside of calls, where it spins for a
// moment and then sleeps in poll; outside of calls nothing has to move. Failures are told by
// GroupControl; UCX's own errors only count when that stays silent.
//
// Small messages travel eagerly, and wait at the receiver where they come a call early (a peer can
// be one call ahead, no more: it needs this rank's message to go on). Large ones travel by
// rendezvous, from the sender's buffer into the receiver's.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "transport/group/control.h"
#include "transport/group/tcp_rendezvous.h"
#include "transport/ucx/ucx_library.h"

namespace baton::transport {

class UcxExchange final : public FormedExchange {
 public:
  static absl::StatusOr<std::unique_ptr<UcxExchange>> Create(const UcxOptions& options,
                                                             std::shared_ptr<Clock> clock);
  ~UcxExchange() override;

  absl::StatusOr<std::string> Address() const override;
  // The connections are made by the first call.
  absl::Status Connect(int rank, Formed formed, Tick deadline) override;

  absl::Status Run(const CallShape& shape, std::span<const SendSpan> send,
                   std::span<const RecvSpan> recv, const CallLimit& limit) override;
  void Abort(GroupFailure failure, uint64_t last_good_call) override {
    control_->Break(failure, last_good_call);
  }
  void Ring() override { control_->Ring(state_->entered() + 1); }
  std::vector<int> GoneRanks() override;
  void MoveOn() override { control_->MoveOn(); }
  GroupState& state() override { return *state_; }

  // Messages that no rank of the group sends; dropped.
  uint64_t malformed_messages() const { return malformed_messages_; }

 private:
  // A message that has come, as far as it is here.
  struct Arrival {
    CallHeader header;
    std::vector<std::byte> bytes;  // of an eager one
    void* descriptor = nullptr;    // of a rendezvous: UCX's
  };
  struct Peer {
    UcxExchange* exchange = nullptr;
    int rank = 0;
    ucp_ep_h endpoint = nullptr;
    absl::Status failure;
    std::optional<Arrival> arrivals[2];  // not yet taken; of even and odd calls
    CallHeader header;                   // of the message being sent; UCX reads it until it is sent
    bool is_sent = true;
    bool is_received = true;
    bool has_arrived = true;  // its message for this call, at least its header
  };

  UcxExchange(std::shared_ptr<Clock> clock) : clock_(std::move(clock)) {}
  absl::Status Start(const UcxOptions& options);

  void Begin(uint64_t call, const CallShape& shape, std::span<const RecvSpan> recv);
  void Send(Peer* peer, SendSpan bytes);
  void Take(Peer* peer);
  void FinishSend(Peer* peer, ucs_status_t status);
  void FinishReceive(Peer* peer, ucs_status_t status);
  void FailPeer(Peer* peer, ucs_status_t status, const char* what);
  absl::Status AwaitAll(const CallLimit& limit);
  bool IsDone() const { return unsent_ == 0 && unreceived_ == 0 && !has_failed_; }
  void Flush(const CallLimit& limit);
  // OK while the call may go on.
  absl::Status Check(const CallLimit& limit);
  std::vector<int> Waiting() const;
  void Sleep(const CallLimit& limit);
  void Close();
  ucs_status_t Arrive(const CallHeader& header, void* data, size_t length,
                      const ucp_am_recv_param_t* param);

  static void OnPeerError(void* argument, ucp_ep_h endpoint, ucs_status_t status);
  static void OnSent(void* request, ucs_status_t status, void* user_data);
  static void OnReceived(void* request, ucs_status_t status, size_t length, void* user_data);
  static ucs_status_t OnMessage(void* argument, const void* header, size_t header_length,
                                void* data, size_t length, const ucp_am_recv_param_t* param);

  const std::shared_ptr<Clock> clock_;
  UcxContext context_;
  std::map<int, Peer> peers_;  // destroyed after the worker
  UcxWorker worker_;
  int worker_fd_ = -1;
  std::shared_ptr<GroupState> state_;
  std::unique_ptr<GroupControl> control_;
  uint64_t key_ = 0;
  uint64_t malformed_messages_ = 0;
  bool is_closed_ = false;

  // The call at hand.
  uint64_t call_ = 0;
  CallShape shape_;
  std::span<const RecvSpan> recv_;
  int unsent_ = 0;
  int unreceived_ = 0;
  int operations_ = 0;                 // that UCX works on: it may touch the caller's buffers
  bool has_failed_ = false;            // one of its sends or receives
  std::vector<Peer*> arrived_;         // to be taken, outside of callbacks
  std::optional<GroupFailure> fault_;  // that this rank has found
  Tick next_report_;
  Tick peer_failed_at_ = Tick::Infinite();
};

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_UCX_UCX_EXCHANGE_H_
