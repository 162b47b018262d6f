#ifndef BATON_TRANSPORT_NCCL_HANDOFF_OUTBOUND_H_
#define BATON_TRANSPORT_NCCL_HANDOFF_OUTBOUND_H_

// The sending side of an NCCL endpoint. A Peer is a connection to one receiver with its channel,
// shared by the transfers to that address; when it fails, its channel is aborted, and once the GPU
// is done with it its transfers are told; the next Prepare connects anew. A post waits in its
// peer's queue, is offered as part of a batch, launched when that is granted, and ends as kSent
// when the receiver confirms the batch.
//
// The endpoint's thread makes all calls.

#include <poll.h>

#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "transport/nccl/handoff_context.h"
#include "transport/nccl/nccl_address.h"

namespace baton::transport {

class HandoffOutbound {
 public:
  explicit HandoffOutbound(HandoffContext& context) : context_(context) {}

  struct PostCommand {
    TransferId transfer;
    uint64_t post_id = 0;
    KvMessageHeader header;
    std::span<const std::byte> payload;
  };
  // `where` to connect to, "host:port".
  void Open(TransferId id, const std::string& address, const NcclAddress& decoded,
            const std::string& where, Tick now);
  void Post(const PostCommand& post, Tick now);
  void Notify(TransferId id, const std::string& bytes, Tick now);
  void Flush(TransferId id);
  void Release(TransferId id);

  // One round over all peers; true when something moved.
  bool Step(NextLook& look);
  void AddFds(std::vector<pollfd>* fds) const;
  // Notifies that the kernel has not taken yet.
  uint32_t unsent_notifies() const;
  void Stop(const absl::Status& why);
  bool stopped() const { return peers_.empty() && failed_.empty(); }

 private:
  struct QueuedPost {
    PostCommand command;
    Tick since;
  };
  struct Batch {
    uint64_t number = 0;
    std::vector<PostCommand> posts;
    std::vector<ChannelPiece> pieces;
    uint64_t bytes = 0;
    bool is_granted = false;
    bool is_launched = false;
    bool is_done = false;      // here
    bool is_received = false;  // there
    uint64_t where = 0;        // it is granted
  };
  struct Peer {
    std::string address;
    uint64_t incarnation = 0;
    FrameSocket socket;
    bool is_welcome = false;
    bool copies = false;  // it is this endpoint itself
    bool puts = false;    // its channels have windows
    bool told_puts = false;
    uint64_t staging_bytes = 0;  // the receiver's
    Tick moved;                  // when it last did something for this side
    std::unique_ptr<HandoffChannel> channel;
    uint64_t serial = 0;  // of the channel; from 1 on
    Tick channel_since;
    bool was_connected = false;
    std::deque<QueuedPost> queue;
    uint64_t queued_bytes = 0;
    bool flush = false;
    std::deque<Batch> batches;  // offered
    uint64_t next_batch = 1;
    uint32_t notifies = 0;  // in the socket
    std::set<TransferId> transfers;
    absl::Status failure;  // OK while it lives
    bool is_over = false;  // has failed, and nothing is under way any more
  };
  struct Transfer {
    std::shared_ptr<Peer> peer;
    uint32_t sends = 0;
    bool is_released = false;
    bool lost_told = false;
  };

  bool Advance(Peer& peer, NextLook& look);
  absl::Status Handle(Peer& peer, const HandoffMessage& message, Tick now);
  absl::Status Welcome(Peer& peer, const HandoffMessage& message, Tick now);
  absl::Status FindBatch(Peer& peer, const HandoffMessage& message, Batch** batch);
  bool PollSocket(Peer& peer, Tick now);
  bool MoveChannel(Peer& peer, Tick now);
  // Whether both sides can put; else, and from then on, they send and receive.
  void AgreeOnPuts(Peer& peer, const HandoffPlace& theirs);
  void GiveUpPuts(Peer& peer, const std::string& why);
  uint64_t WindowBytes(const Peer& peer) const;
  void OpenChannel(Peer& peer, Tick now);
  bool MakeRoom(const Peer& for_whom);
  void CloseChannel(Peer& peer);
  bool LaunchGranted(Peer& peer, Tick now);
  bool Retire(Peer& peer);
  bool Offer(Peer& peer, NextLook& look);
  Batch TakeBatch(Peer& peer);
  void CheckTime(Peer& peer, NextLook& look);
  void Fail(Peer& peer, const absl::Status& status);
  void BuryFailed();
  void Settle(TransferId id);

  HandoffContext& context_;
  std::map<std::string, std::shared_ptr<Peer>> peers_;  // by address; none has failed
  std::vector<std::shared_ptr<Peer>> failed_;           // their channels are still ending
  std::map<TransferId, Transfer> transfers_;
};

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_NCCL_HANDOFF_OUTBOUND_H_
