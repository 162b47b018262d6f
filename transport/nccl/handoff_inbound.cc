#include "transport/nccl/handoff_inbound.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "transport/region_table.h"

namespace baton::transport {

bool HandoffInbound::Step(NextLook& look, size_t waiting) {
  const Tick now = look.now();
  waiting_ = waiting;
  bool moved = Accept(now);
  for (const auto& link : links_) {
    if (link->has_failed) continue;
    moved = PollSocket(*link, now) || moved;
    if (!link->has_failed) moved = MoveChannel(*link, now) || moved;
    if (!link->has_failed) moved = Finish(*link, now) || moved;
    if (!link->has_failed) CheckTime(*link, look);
  }
  moved = GrantAll(now) || moved;
  for (const auto& link : links_) {
    if (!link->has_failed && link->socket.wants_write()) PollSocket(*link, now);
  }
  BuryFailed(look);
  return moved;
}

// --- connections

bool HandoffInbound::Accept(Tick now) {
  listener_.Pump(now, &trouble_);
  bool moved = false;
  std::vector<FrameListener::Visitor>& visitors = listener_.visitors();
  for (FrameListener::Visitor& visitor : visitors) {
    if (!visitor.has_frame) continue;
    Greet(std::move(visitor), now);
    moved = true;
  }
  std::erase_if(visitors, [](const auto& visitor) { return !visitor.socket.is_open(); });
  if (!trouble_.empty()) {
    ++context_.counters.malformed_messages;
    context_.options.log.Warning("a stranger at the port for hand-offs", {{"who", trouble_}});
    trouble_.clear();
  }
  return moved;
}

void HandoffInbound::Greet(FrameListener::Visitor visitor, Tick now) {
  const absl::StatusOr<HandoffMessage> hello = DecodeHandoff(visitor.first.payload);
  std::string why;
  if (!hello.ok() || hello->kind != HandoffKind::kHello) {
    ++context_.counters.malformed_messages;
    why = "the first message is no hello";
  } else if (hello->number != context_.place.endpoint) {
    why = "this is not the endpoint that the address is of, which has ended";
  } else if (staging_ == nullptr) {
    why = "this endpoint only sends";
  } else if (links_.size() >= context_.options.max_peers) {
    why = absl::StrCat(links_.size(), " senders are connected, the most this endpoint allows");
  }
  if (!why.empty()) {
    Tell(visitor.socket, {.kind = HandoffKind::kRefused, .text = why});
    // Few bytes on a fresh connection: the kernel takes them at once.
    visitor.socket.Pump().IgnoreError();
    return;
  }
  auto link = std::make_unique<Link>();
  link->socket = std::move(visitor.socket);
  link->copies = hello->place == context_.place;
  link->moved = now;
  if (link->copies) {
    absl::StatusOr<std::unique_ptr<HandoffChannel>> copies = MakeCopyChannel(context_.channel);
    if (!copies.ok()) return;  // by which the sender loses its connection
    link->channel = *std::move(copies);
  }
  Tell(link->socket,
       {.kind = HandoffKind::kWelcome, .number = staging_->bytes(), .place = context_.place});
  links_.push_back(std::move(link));
}

bool HandoffInbound::PollSocket(Link& link, Tick now) {
  const absl::Status status = link.socket.Pump();
  bool moved = false;
  while (std::optional<Frame> frame = link.socket.Next()) {
    moved = true;
    absl::StatusOr<HandoffMessage> message = DecodeHandoff(frame->payload);
    absl::Status handled = message.status();
    if (handled.ok()) handled = Handle(link, *message, now);
    if (handled.ok()) continue;
    ++context_.counters.malformed_messages;
    context_.options.log.Warning(
        "a sender of hand-offs is dropped",
        {{"sender", link.socket.PeerAddress()}, {"status", std::string(handled.message())}});
    Fail(link);
    return true;
  }
  if (!status.ok()) {
    if (absl::IsInvalidArgument(status)) ++context_.counters.malformed_messages;
    Fail(link);
    return true;
  }
  return moved;
}

absl::Status HandoffInbound::Handle(Link& link, const HandoffMessage& message, Tick now) {
  switch (message.kind) {
    case HandoffKind::kOpen:
      if (link.copies || !link.running.empty() || message.text.size() != sizeof(ncclUniqueId)) {
        return absl::InvalidArgumentError("a communicator was offered where none can be");
      }
      if (message.address > (context_.place.puts ? staging_->bytes() : 0)) {
        return absl::InvalidArgumentError("a window was offered that cannot be");
      }
      context_.End(std::move(link.channel));
      link.serial = message.number;
      link.open_id = message.text;
      link.window_bytes = message.address;
      link.channel_since = now;
      return absl::OkStatus();
    case HandoffKind::kClosed:
      if (!link.copies && link.running.empty() && message.number == link.serial) {
        context_.End(std::move(link.channel));
        link.open_id.clear();
      }
      return absl::OkStatus();
    case HandoffKind::kOffer:
      return TakeOffer(link, message);
    case HandoffKind::kPlaced:
      if (link.channel != nullptr) return link.channel->Take(message.number);
      return absl::InvalidArgumentError("a batch was announced that is not under way");
    case HandoffKind::kNotify: {
      if (!CheckNotify(std::as_bytes(std::span(message.text))).ok()) {
        return absl::InvalidArgumentError("a notify is too large");
      }
      if (waiting_ >= context_.options.max_waiting_messages) {
        ++context_.counters.dropped_notifies;
        return absl::OkStatus();
      }
      ++waiting_;
      NcclArrival arrival{.event = {.kind = KvEventKind::kNotified}};
      const auto bytes = std::as_bytes(std::span(message.text));
      arrival.bytes.assign(bytes.begin(), bytes.end());
      context_.emit(std::move(arrival));
      return absl::OkStatus();
    }
    default:
      return absl::InvalidArgumentError("the sender said what only a receiver says");
  }
}

absl::Status HandoffInbound::TakeOffer(Link& link, const HandoffMessage& message) {
  if (message.number != link.next_batch || message.entries.empty() ||
      link.offers.size() + link.running.size() >= kMaxOpenBatches) {
    return absl::InvalidArgumentError("a batch was offered out of turn");
  }
  for (const OfferEntry& entry : message.entries) {
    if (entry.header.payload_bytes > context_.options.max_message_bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("a message of ", entry.header.payload_bytes, " bytes was offered; at most ",
                       context_.options.max_message_bytes, " are allowed"));
    }
  }
  const uint64_t bytes = PayloadBytes(message.entries);
  if (bytes > staging_->bytes()) {
    return absl::InvalidArgumentError(
        absl::StrCat("a batch of ", bytes, " bytes was offered; staging has ", staging_->bytes()));
  }
  ++link.next_batch;
  link.offers.push_back({message.number, message.entries, bytes});
  return absl::OkStatus();
}

// --- channels

bool HandoffInbound::MoveChannel(Link& link, Tick now) {
  if (!link.open_id.empty()) OpenChannel(link, now);
  if (link.channel == nullptr || link.has_failed) return false;
  link.channel->Poll();
  const absl::Status failure = link.channel->failure();
  if (!failure.ok() && !link.channel->is_connected()) {
    CannotConnect(link, failure);
    return true;
  }
  if (!failure.ok()) {
    context_.options.log.Warning("receiving from a peer failed",
                                 {{"status", std::string(failure.message())}});
    Fail(link);
    return true;
  }
  bool moved = false;
  while (const std::optional<uint64_t> done = link.channel->TakeFinished()) {
    moved = true;
    for (Running& running : link.running) {
      if (running.offer.number == *done) running.is_done = true;
    }
  }
  return moved;
}

void HandoffInbound::OpenChannel(Link& link, Tick now) {
  if (!MakeRoom(link)) return;
  ncclUniqueId id = {};
  std::memcpy(id.internal, link.open_id.data(), sizeof(id.internal));
  link.open_id.clear();
  absl::StatusOr<std::unique_ptr<HandoffChannel>> channel =
      link.window_bytes > 0
          ? MakePutChannel(context_.channel, id, ChannelEnd::kReceiver, link.window_bytes)
          : MakePairChannel(context_.channel, id, ChannelEnd::kReceiver);
  ++context_.counters.communicators;
  if (!channel.ok()) return CannotConnect(link, channel.status());
  link.channel = *std::move(channel);
  link.channel_since = now;
  link.was_served = false;
}

// Without a window it may work.
void HandoffInbound::CannotConnect(Link& link, const absl::Status& why) {
  if (link.window_bytes == 0) {
    context_.options.log.Warning("cannot connect to a sender of hand-offs",
                                 {{"status", std::string(why.message())}});
    return Fail(link);
  }
  Tell(link.socket,
       {.kind = HandoffKind::kEvict, .number = link.serial, .text = std::string(why.message())});
  context_.End(std::move(link.channel));
}

// For one more communicator: the one that was idle for longest goes. One that has not been of use
// yet stays while its sender waits, so that each has its turn.
bool HandoffInbound::MakeRoom(const Link& for_whom) {
  uint32_t live = 0;
  Link* oldest = nullptr;
  for (const auto& link : links_) {
    if (link->channel == nullptr || link->copies || link->has_failed) continue;
    ++live;
    if (link.get() == &for_whom || !link->running.empty()) continue;
    if (!link->offers.empty() && !link->was_served) continue;
    if (oldest == nullptr || link->moved < oldest->moved) oldest = link.get();
  }
  if (live < context_.options.max_communicators) return true;
  if (oldest == nullptr) return false;
  ++context_.counters.evictions;
  Tell(oldest->socket, {.kind = HandoffKind::kEvict, .number = oldest->serial});
  context_.End(std::move(oldest->channel));
  return true;
}

// --- batches

// Fair: who is granted something goes to the end. What does not fit stops the others too, so that
// small batches do not starve large ones.
bool HandoffInbound::GrantAll(Tick now) {
  is_starved_ = false;
  uint32_t at_it = 0;
  for (const auto& link : links_) at_it += link->running.empty() ? 0 : 1;
  bool moved = false;
  size_t idle = 0;
  while (idle < links_.size()) {
    Link& link = *links_.front();
    const bool has_turn =
        !link.running.empty() || at_it < context_.options.max_concurrent_transfers;
    const bool was_idle = link.running.empty();
    Granted granted = Granted::kNothing;
    if (!link.has_failed && !link.offers.empty() && has_turn) {
      const size_t messages = link.offers.front().entries.size();
      const bool is_full =
          waiting_ > 0 && waiting_ + messages > context_.options.max_waiting_messages;
      granted = is_full ? Granted::kNoRoom : Grant(link, now);
      if (granted == Granted::kYes) waiting_ += messages;
    }
    if (granted == Granted::kNoRoom) {
      is_starved_ = true;
      break;
    }
    moved = moved || granted == Granted::kYes;
    if (was_idle && !link.running.empty()) ++at_it;
    idle = granted == Granted::kYes ? 0 : idle + 1;
    links_.splice(links_.end(), links_, links_.begin());
  }
  return moved;
}

HandoffInbound::Granted HandoffInbound::Grant(Link& link, Tick now) {
  Offer& offer = link.offers.front();
  Running running;
  uint64_t where = 0;
  if (offer.bytes > 0) {
    if (link.channel == nullptr || !link.channel->is_ready()) return Granted::kNothing;
    running.block = staging_->TryTake(offer.bytes);
    if (running.block == nullptr) return Granted::kNoRoom;
    const absl::StatusOr<std::optional<uint64_t>> place =
        link.channel->Expect(offer.number, running.block->bytes(), PieceBytes(offer.entries));
    if (place.ok() && !place->has_value()) return Granted::kNothing;  // one before it makes room
    if (!place.ok()) {
      Fail(link);
      return Granted::kYes;
    }
    where = **place;
  }
  running.is_done = offer.bytes == 0;
  running.offer = std::move(offer);
  link.offers.pop_front();
  link.running.push_back(std::move(running));
  link.moved = now;
  link.was_served = true;
  const Running& begun = link.running.back();
  if (begun.is_done) return Granted::kYes;  // nothing to move; the answer is that it was received
  Tell(link.socket, {.kind = HandoffKind::kGrant, .number = begun.offer.number, .address = where});
  return Granted::kYes;
}

bool HandoffInbound::Finish(Link& link, Tick now) {
  bool moved = false;
  while (!link.running.empty() && link.running.front().is_done) {
    Deliver(link.running.front());
    Tell(link.socket,
         {.kind = HandoffKind::kReceived, .number = link.running.front().offer.number});
    link.running.pop_front();
    link.moved = now;
    moved = true;
  }
  return moved;
}

void HandoffInbound::Deliver(const Running& running) {
  size_t at = 0;
  for (const OfferEntry& entry : running.offer.entries) {
    const size_t bytes = entry.header.payload_bytes;
    NcclArrival arrival{.event = {.kind = KvEventKind::kReceived, .header = entry.header}};
    if (bytes > 0) {
      arrival.block = running.block;
      arrival.event.payload = running.block->bytes().subspan(at, bytes);
      at += bytes;
    }
    context_.emit(std::move(arrival));
  }
}

// --- ends

void HandoffInbound::CheckTime(Link& link, NextLook& look) {
  const NcclTransportOptions& options = context_.options;
  if (link.channel != nullptr && link.channel->in_transition()) look.In(kTransitionWait);
  const bool is_connecting = link.channel != nullptr && !link.channel->is_connected();
  if (is_connecting || !link.running.empty() || !link.open_id.empty()) look.In(kDeadlineWait);
  const bool is_late =
      (is_connecting && look.now() - link.channel_since >= options.connect_timeout) ||
      // Longer than the sender's patience, who knows more.
      (!link.running.empty() && look.now() - link.moved >= options.transfer_timeout * 2);
  if (!is_late) return;
  context_.options.log.Warning("a sender of hand-offs stands still",
                               {{"sender", link.socket.PeerAddress()}});
  Fail(link);
}

void HandoffInbound::Fail(Link& link) {
  if (std::exchange(link.has_failed, true)) return;
  link.socket.Close();
  link.offers.clear();
  context_.counters.failed_receives += link.running.size();
  if (link.channel != nullptr) link.channel->Abort();
}

// Staging of an aborted receive is free when the GPU is done with it.
void HandoffInbound::BuryFailed(NextLook& look) {
  std::erase_if(links_, [&](const std::unique_ptr<Link>& link) {
    if (!link->has_failed) return false;
    if (link->channel == nullptr || link->channel->drained()) return true;
    look.In(kTransitionWait);
    return false;
  });
}

void HandoffInbound::AddFds(std::vector<pollfd>* fds) const {
  fds->push_back({listener_.fd(), POLLIN, 0});
  for (const FrameListener::Visitor& visitor :
       const_cast<HandoffInbound*>(this)->listener_.visitors()) {
    fds->push_back({visitor.socket.fd(), POLLIN, 0});
  }
  for (const auto& link : links_) {
    if (link->has_failed) continue;
    const short events = static_cast<short>(POLLIN | (link->socket.wants_write() ? POLLOUT : 0));
    fds->push_back({link->socket.fd(), events, 0});
  }
}

void HandoffInbound::Stop() {
  for (const auto& link : links_) Fail(*link);
}

}  // namespace baton::transport
