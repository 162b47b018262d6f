#include "transport/nccl/handoff_outbound.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace baton::transport {

// --- commands

void HandoffOutbound::Open(TransferId id, const std::string& address, const NcclAddress& decoded,
                           const std::string& where, Tick now) {
  Transfer& transfer = transfers_[id];
  auto known = peers_.find(address);
  if (known != peers_.end()) {
    transfer.peer = known->second;
  } else {
    transfer.peer = std::make_shared<Peer>();
    Peer& peer = *transfer.peer;
    peer.address = address;
    peer.incarnation = decoded.incarnation;
    peer.moved = now;
    absl::StatusOr<FrameSocket> socket = FrameSocket::Connect(where);
    if (peers_.size() >= context_.options.max_peers) {
      socket = absl::ResourceExhaustedError(
          absl::StrCat(peers_.size(), " peers are connected, the most this endpoint allows"));
    }
    if (socket.ok()) {
      peer.socket = *std::move(socket);
      Tell(peer.socket,
           {.kind = HandoffKind::kHello, .number = peer.incarnation, .place = context_.place});
      peers_.emplace(address, transfer.peer);
    } else {
      peer.failure = socket.status();
      peer.is_over = true;
    }
  }
  transfer.peer->transfers.insert(id);
  Settle(id);
}

void HandoffOutbound::Post(const PostCommand& post, Tick now) {
  Transfer& transfer = transfers_.at(post.transfer);
  Peer& peer = *transfer.peer;
  if (!peer.failure.ok()) return;  // kPeerLost tells
  ++transfer.sends;
  // From now on it is waited for.
  if (peer.queue.empty() && peer.batches.empty()) peer.moved = std::max(peer.moved, now);
  peer.queue.push_back({post, now});
  peer.queued_bytes += post.payload.size();
}

void HandoffOutbound::Notify(TransferId id, const std::string& bytes, Tick now) {
  Peer& peer = *transfers_.at(id).peer;
  if (!peer.failure.ok()) return;
  if (peer.socket.unsent_bytes() == 0) peer.moved = std::max(peer.moved, now);
  Tell(peer.socket, {.kind = HandoffKind::kNotify, .text = bytes});
  ++peer.notifies;
}

void HandoffOutbound::Flush(TransferId id) {
  const auto it = transfers_.find(id);
  if (it != transfers_.end()) it->second.peer->flush = true;
}

void HandoffOutbound::Release(TransferId id) {
  Flush(id);
  transfers_.at(id).is_released = true;
  Settle(id);
}

uint32_t HandoffOutbound::unsent_notifies() const {
  uint32_t count = 0;
  for (const auto& [address, peer] : peers_) count += peer->notifies;
  return count;
}

// Tells what has become true of a transfer; may end it.
void HandoffOutbound::Settle(TransferId id) {
  const auto it = transfers_.find(id);
  if (it == transfers_.end()) return;
  Transfer& transfer = it->second;
  if (!transfer.peer->failure.ok()) {
    if (!transfer.peer->is_over) return;
    if (!std::exchange(transfer.lost_told, true)) {
      context_.emit(
          {.event = {
               .kind = KvEventKind::kPeerLost, .transfer = id, .status = transfer.peer->failure}});
    }
  } else if (transfer.sends > 0) {
    return;
  }
  if (!transfer.is_released) return;
  context_.emit({.event = {.kind = KvEventKind::kReleased, .transfer = id}});
  transfer.peer->transfers.erase(id);
  transfers_.erase(it);
}

// --- rounds

bool HandoffOutbound::Step(NextLook& look) {
  bool moved = false;
  std::vector<std::shared_ptr<Peer>> all;
  for (const auto& [address, peer] : peers_) all.push_back(peer);
  for (const auto& peer : all) moved = Advance(*peer, look) || moved;
  if (!failed_.empty()) look.In(kTransitionWait);
  BuryFailed();
  return moved;
}

bool HandoffOutbound::Advance(Peer& peer, NextLook& look) {
  const Tick now = look.now();
  bool moved = PollSocket(peer, now);
  if (peer.failure.ok() && peer.is_welcome) {
    moved = MoveChannel(peer, now) || moved;
    if (peer.failure.ok()) moved = Retire(peer) || moved;
    if (peer.failure.ok()) moved = Offer(peer, look) || moved;
  }
  if (peer.failure.ok()) CheckTime(peer, look);
  if (peer.failure.ok() && peer.socket.wants_write()) PollSocket(peer, now);
  return moved;
}

bool HandoffOutbound::PollSocket(Peer& peer, Tick now) {
  const size_t unsent = peer.socket.unsent_bytes();
  const absl::Status status = peer.socket.Pump();
  if (peer.socket.unsent_bytes() < unsent && peer.is_welcome) peer.moved = now;
  if (peer.socket.unsent_bytes() == 0) peer.notifies = 0;
  bool moved = false;
  while (std::optional<Frame> frame = peer.socket.Next()) {
    moved = true;
    absl::StatusOr<HandoffMessage> message = DecodeHandoff(frame->payload);
    absl::Status handled = message.status();
    if (handled.ok()) handled = Handle(peer, *message, now);
    if (handled.ok()) continue;
    if (absl::IsInvalidArgument(handled)) ++context_.counters.malformed_messages;
    Fail(peer, handled);
    return true;
  }
  if (!status.ok()) {
    if (absl::IsInvalidArgument(status)) ++context_.counters.malformed_messages;
    Fail(peer, absl::UnavailableError(
                   absl::StrCat("the connection to the peer was lost: ", status.message())));
  }
  return moved || !status.ok();
}

absl::Status HandoffOutbound::Handle(Peer& peer, const HandoffMessage& message, Tick now) {
  Batch* batch = nullptr;
  peer.moved = now;
  switch (message.kind) {
    case HandoffKind::kWelcome:
      return Welcome(peer, message, now);
    case HandoffKind::kRefused:
      return absl::UnavailableError(absl::StrCat("the peer refuses: ", message.text));
    case HandoffKind::kEvict:
      if (peer.channel != nullptr && message.number == peer.serial && !peer.copies) {
        if (!message.text.empty()) GiveUpPuts(peer, message.text);
        context_.End(std::move(peer.channel));
      }
      return absl::OkStatus();
    case HandoffKind::kGrant: {
      const absl::Status found = FindBatch(peer, message, &batch);
      if (!found.ok()) return found;
      batch->is_granted = true;
      batch->where = message.address;
      return absl::OkStatus();
    }
    case HandoffKind::kReceived: {
      const absl::Status found = FindBatch(peer, message, &batch);
      if (!found.ok()) return found;
      if (batch->bytes > 0 && !batch->is_launched) {
        return absl::InvalidArgumentError("the peer has received what was not sent");
      }
      batch->is_done = batch->is_done || batch->bytes == 0;
      batch->is_received = true;
      return absl::OkStatus();
    }
    default:
      return absl::InvalidArgumentError("the peer said what only a sender says");
  }
}

absl::Status HandoffOutbound::Welcome(Peer& peer, const HandoffMessage& message, Tick now) {
  if (peer.is_welcome) return absl::InvalidArgumentError("the peer said welcome twice");
  peer.is_welcome = true;
  peer.staging_bytes = message.number;
  peer.copies = message.place == context_.place;
  if (!peer.copies && message.place.gpu == context_.place.gpu) {
    return absl::FailedPreconditionError(
        "the peer uses the same GPU, and NCCL connects different ones only; give each worker a "
        "GPU of its own, or set handoff.transport to ucx (inproc in one process)");
  }
  AgreeOnPuts(peer, message.place);
  OpenChannel(peer, now);
  return absl::OkStatus();
}

// The first batch for which this message has not come yet; it has to be that one.
absl::Status HandoffOutbound::FindBatch(Peer& peer, const HandoffMessage& message, Batch** batch) {
  const bool grants = message.kind == HandoffKind::kGrant;
  for (Batch& b : peer.batches) {
    if (grants ? b.is_granted : b.is_received) continue;
    if (b.number != message.number) break;
    *batch = &b;
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("the peer answered for batch ", message.number, " out of turn"));
}

// --- the channel

void HandoffOutbound::AgreeOnPuts(Peer& peer, const HandoffPlace& theirs) {
  const HandoffPlace& ours = context_.place;
  if (peer.copies || !ours.puts) return;
  peer.puts = theirs.puts && theirs.host == ours.host;
  if (!peer.puts) GiveUpPuts(peer, theirs.puts ? "it is on another host" : "it does not take part");
}

void HandoffOutbound::GiveUpPuts(Peer& peer, const std::string& why) {
  peer.puts = false;
  context_.options.log.Info("hand-offs to a peer are not one-sided",
                            {{"peer", peer.socket.PeerAddress()}, {"why", why}});
}

// Room for any batch.
uint64_t HandoffOutbound::WindowBytes(const Peer& peer) const {
  const NcclTransportOptions& options = context_.options;
  return std::min(NcclWindowBytes(options.coalesce_bytes, options.max_message_bytes),
                  peer.staging_bytes);
}

void HandoffOutbound::OpenChannel(Peer& peer, Tick now) {
  if (!peer.copies && !MakeRoom(peer)) return;
  absl::StatusOr<std::unique_ptr<HandoffChannel>> channel;
  ++peer.serial;
  if (peer.copies) {
    channel = MakeCopyChannel(context_.channel);
  } else {
    ncclUniqueId id = {};
    const ncclResult_t made = ncclGetUniqueId(&id);
    const uint64_t window_bytes = peer.puts ? WindowBytes(peer) : 0;
    if (made != ncclSuccess) {
      channel = absl::InternalError(ncclGetErrorString(made));
    } else if (peer.puts) {
      channel = MakePutChannel(context_.channel, id, ChannelEnd::kSender, window_bytes);
    } else {
      channel = MakePairChannel(context_.channel, id, ChannelEnd::kSender);
    }
    if (made == ncclSuccess) ++context_.counters.communicators;
    Tell(peer.socket, {.kind = HandoffKind::kOpen,
                       .number = peer.serial,
                       .address = window_bytes,
                       .text = std::string(id.internal, sizeof(id.internal))});
  }
  if (!channel.ok()) return Fail(peer, channel.status());
  peer.channel = *std::move(channel);
  peer.channel_since = now;
  peer.was_connected = false;
}

// For one more communicator: the one that was idle for longest goes.
bool HandoffOutbound::MakeRoom(const Peer& for_whom) {
  uint32_t live = 0;
  Peer* oldest = nullptr;
  for (const auto& [address, peer] : peers_) {
    if (peer->channel == nullptr || peer->copies) continue;
    ++live;
    if (peer.get() == &for_whom || !peer->queue.empty() || !peer->batches.empty()) continue;
    if (oldest == nullptr || peer->moved < oldest->moved) oldest = peer.get();
  }
  if (live < context_.options.max_communicators) return true;
  if (oldest == nullptr) return false;
  ++context_.counters.evictions;
  CloseChannel(*oldest);
  return true;
}

void HandoffOutbound::CloseChannel(Peer& peer) {
  Tell(peer.socket, {.kind = HandoffKind::kClosed, .number = peer.serial});
  context_.End(std::move(peer.channel));
}

bool HandoffOutbound::MoveChannel(Peer& peer, Tick now) {
  const bool has_work = !peer.queue.empty() || !peer.batches.empty();
  if (peer.channel == nullptr && has_work) OpenChannel(peer, now);
  if (peer.channel == nullptr || !peer.failure.ok()) return false;
  bool moved = false;
  peer.channel->Poll();
  if (!peer.channel->failure().ok() && peer.puts && !peer.channel->is_connected()) {
    GiveUpPuts(peer, std::string(peer.channel->failure().message()));
    CloseChannel(peer);
    return true;
  }
  if (!peer.channel->failure().ok()) {
    Fail(peer, absl::UnavailableError(absl::StrCat("sending to the peer failed: ",
                                                   peer.channel->failure().message())));
    return true;
  }
  if (peer.channel->is_connected() && !std::exchange(peer.was_connected, true)) {
    peer.moved = now;
    moved = true;
    if (peer.puts && !std::exchange(peer.told_puts, true)) {
      context_.options.log.Info("hand-offs to a peer are one-sided",
                                {{"peer", peer.socket.PeerAddress()}});
    }
  }
  while (const std::optional<uint64_t> done = peer.channel->TakeFinished()) {
    moved = true;
    for (Batch& batch : peer.batches) {
      if (batch.number == *done) batch.is_done = true;
    }
    if (peer.channel->announces()) {
      Tell(peer.socket, {.kind = HandoffKind::kPlaced, .number = *done});
    }
  }
  return LaunchGranted(peer, now) || moved;
}

bool HandoffOutbound::LaunchGranted(Peer& peer, Tick now) {
  bool moved = false;
  for (Batch& batch : peer.batches) {
    if (batch.is_launched) continue;
    if (!batch.is_granted || !peer.channel->is_ready()) break;
    batch.is_launched = true;
    peer.moved = now;
    moved = true;
    ++context_.counters.batches_sent;
    context_.counters.batches_put += peer.puts ? 1 : 0;
    const absl::Status status = peer.channel->Send(batch.number, batch.pieces, batch.where);
    if (!status.ok()) {
      Fail(peer, status);
      break;
    }
  }
  return moved;
}

bool HandoffOutbound::Retire(Peer& peer) {
  bool moved = false;
  while (!peer.batches.empty() && peer.batches.front().is_received &&
         peer.batches.front().is_done) {
    const Batch batch = std::move(peer.batches.front());
    peer.batches.pop_front();
    moved = true;
    for (const PostCommand& post : batch.posts) {
      context_.emit(
          {.event = {
               .kind = KvEventKind::kSent, .transfer = post.transfer, .post_id = post.post_id}});
      --transfers_.at(post.transfer).sends;
      Settle(post.transfer);
    }
  }
  return moved;
}

// --- batches

bool HandoffOutbound::Offer(Peer& peer, NextLook& look) {
  bool moved = false;
  const NcclTransportOptions& options = context_.options;
  while (!peer.queue.empty() && peer.batches.size() < kMaxOpenBatches) {
    const Tick due = peer.queue.front().since + options.coalesce_delay;
    const bool is_worth =
        peer.queued_bytes >= options.coalesce_bytes || peer.queue.size() >= kMaxBatchMessages;
    if (!is_worth && !peer.flush && look.now() < due) {
      look.At(due);
      break;
    }
    peer.batches.push_back(TakeBatch(peer));
    moved = true;
    HandoffMessage offer{.kind = HandoffKind::kOffer, .number = peer.batches.back().number};
    const std::byte* end = nullptr;
    for (const PostCommand& post : peer.batches.back().posts) {
      offer.entries.push_back({post.header, end != nullptr && post.payload.data() == end});
      if (!post.payload.empty()) end = post.payload.data() + post.payload.size();
    }
    Tell(peer.socket, offer);
  }
  if (peer.queue.empty()) peer.flush = false;
  return moved;
}

HandoffOutbound::Batch HandoffOutbound::TakeBatch(Peer& peer) {
  Batch batch;
  batch.number = peer.next_batch++;
  // All batches of this peer that are open fit its staging, unless one message alone is larger.
  const uint64_t most = std::min(context_.options.coalesce_bytes * kNcclBatchFactor,
                                 peer.staging_bytes / kMaxOpenBatches);
  while (!peer.queue.empty() && batch.posts.size() < kMaxBatchMessages) {
    const PostCommand& post = peer.queue.front().command;
    if (!batch.posts.empty() && batch.bytes + post.payload.size() > most) break;
    batch.bytes += post.payload.size();
    if (!post.payload.empty()) {
      // NCCL only reads what it sends.
      std::byte* const data = const_cast<std::byte*>(post.payload.data());
      if (!batch.pieces.empty() && batch.pieces.back().data + batch.pieces.back().bytes == data) {
        batch.pieces.back().bytes += post.payload.size();
      } else {
        batch.pieces.push_back({data, post.payload.size()});
      }
    }
    peer.queued_bytes -= post.payload.size();
    batch.posts.push_back(post);
    peer.queue.pop_front();
  }
  return batch;
}

// --- ends

void HandoffOutbound::CheckTime(Peer& peer, NextLook& look) {
  const NcclTransportOptions& options = context_.options;
  const Duration silent = look.now() - peer.moved;
  const bool waits = !peer.queue.empty() || !peer.batches.empty() || peer.socket.wants_write();
  const bool is_connecting = peer.channel != nullptr && !peer.channel->is_connected();
  if (peer.channel != nullptr && peer.channel->in_transition()) look.In(kTransitionWait);
  if (waits || is_connecting || !peer.is_welcome) look.In(kDeadlineWait);
  const auto lose = [&](const char* what, Duration limit) {
    Fail(peer, absl::UnavailableError(absl::StrCat(what, " for ", limit.millis(), " ms")));
  };
  if (!peer.is_welcome) {
    if (silent >= options.connect_timeout) lose("the peer did not answer", options.connect_timeout);
    return;
  }
  if (is_connecting && look.now() - peer.channel_since >= options.connect_timeout) {
    return lose("NCCL did not connect to the peer", options.connect_timeout);
  }
  const bool is_begun = !peer.batches.empty() && peer.batches.front().is_launched;
  if (is_begun && silent >= options.transfer_timeout) {
    return lose("a transfer to the peer did not end", options.transfer_timeout);
  }
  if (waits && silent >= options.stall_timeout) {
    lose("the peer took no data", options.stall_timeout);
  }
}

void HandoffOutbound::Fail(Peer& peer, const absl::Status& status) {
  if (!peer.failure.ok()) return;
  peer.failure = status;
  ++context_.counters.peers_lost;
  peer.socket.Close();
  peer.notifies = 0;
  if (peer.channel != nullptr) peer.channel->Abort();
  const auto it = peers_.find(peer.address);
  failed_.push_back(std::move(it->second));
  peers_.erase(it);
}

// The GPU may still read payloads of an aborted channel for a moment.
void HandoffOutbound::BuryFailed() {
  std::vector<std::shared_ptr<Peer>> over;
  std::erase_if(failed_, [&](const std::shared_ptr<Peer>& peer) {
    if (peer->channel != nullptr && !peer->channel->drained()) return false;
    over.push_back(peer);
    return true;
  });
  for (const auto& peer : over) {
    peer->channel.reset();
    peer->queue.clear();
    peer->batches.clear();
    peer->is_over = true;
    const std::set<TransferId> transfers = peer->transfers;
    for (const TransferId id : transfers) Settle(id);
  }
}

void HandoffOutbound::AddFds(std::vector<pollfd>* fds) const {
  for (const auto& [address, peer] : peers_) {
    const short events = static_cast<short>(POLLIN | (peer->socket.wants_write() ? POLLOUT : 0));
    fds->push_back({peer->socket.fd(), events, 0});
  }
}

void HandoffOutbound::Stop(const absl::Status& why) {
  std::vector<std::shared_ptr<Peer>> all;
  for (const auto& [address, peer] : peers_) all.push_back(peer);
  for (const auto& peer : all) Fail(*peer, why);
}

}  // namespace baton::transport
