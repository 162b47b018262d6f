#ifndef BATON_TRANSPORT_NCCL_HANDOFF_INBOUND_H_
#define BATON_TRANSPORT_NCCL_HANDOFF_INBOUND_H_

// The receiving side of an NCCL endpoint. A Link is a connection from one sender with its channel.
// What it offers waits, in order, until staging has room and few enough others are at it; then its
// receive is launched and the batch granted. When the bytes stand in staging, its messages are
// handed to the loop and the sender is told.
//
// The endpoint's thread makes all calls.

#include <poll.h>

#include <deque>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "transport/nccl/handoff_context.h"

namespace baton::transport {

class HandoffInbound {
 public:
  // `staging` null: all senders are refused.
  HandoffInbound(HandoffContext& context, FrameListener listener, PayloadRing* staging)
      : context_(context), listener_(std::move(listener)), staging_(staging) {}

  // One round over all links; true when something moved. `waiting` are the events that the loop has
  // not polled yet.
  bool Step(NextLook& look, size_t waiting);
  void AddFds(std::vector<pollfd>* fds) const;
  // Whether a batch waits for staging that the loop has to free.
  bool is_starved() const { return is_starved_; }
  void Stop();
  bool stopped() const { return links_.empty(); }

 private:
  struct Offer {
    uint64_t number = 0;
    std::vector<OfferEntry> entries;
    uint64_t bytes = 0;
  };
  struct Running {
    Offer offer;
    std::shared_ptr<PayloadRing::Block> block;
    bool is_done = false;
  };
  struct Link {
    FrameSocket socket;
    bool copies = false;
    std::unique_ptr<HandoffChannel> channel;
    uint64_t serial = 0;        // of the channel, or of the one to be opened
    std::string open_id;        // of a channel to be opened, when there is room
    uint64_t window_bytes = 0;  // of the channel, or of that one; 0: it has none
    Tick channel_since;
    bool was_served = false;  // since the channel was opened
    std::deque<Offer> offers;
    std::deque<Running> running;
    uint64_t next_batch = 1;
    Tick moved;
    bool has_failed = false;  // what runs is aborted; ends when the GPU is done with it
  };
  using Links = std::list<std::unique_ptr<Link>>;

  bool Accept(Tick now);
  void Greet(FrameListener::Visitor visitor, Tick now);
  bool PollSocket(Link& link, Tick now);
  absl::Status Handle(Link& link, const HandoffMessage& message, Tick now);
  absl::Status TakeOffer(Link& link, const HandoffMessage& message);
  bool MoveChannel(Link& link, Tick now);
  void OpenChannel(Link& link, Tick now);
  void CannotConnect(Link& link, const absl::Status& why);
  bool MakeRoom(const Link& for_whom);
  bool Finish(Link& link, Tick now);
  void Deliver(const Running& running);
  bool GrantAll(Tick now);
  enum class Granted : uint8_t { kYes, kNothing, kNoRoom };
  Granted Grant(Link& link, Tick now);
  void CheckTime(Link& link, NextLook& look);
  void Fail(Link& link);
  void BuryFailed(NextLook& look);

  HandoffContext& context_;
  FrameListener listener_;
  PayloadRing* const staging_;
  Links links_;  // who is first is asked first
  bool is_starved_ = false;
  size_t waiting_ = 0;   // for the loop: polled by nobody yet, or under way
  std::string trouble_;  // with strangers, last
};

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_NCCL_HANDOFF_INBOUND_H_
