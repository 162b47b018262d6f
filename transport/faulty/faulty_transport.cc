#include "transport/faulty/faulty_transport.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"

namespace baton::transport {
namespace {

// Bits in front of payload_bytes, which has to agree with the payload.
constexpr size_t kHeaderBits = offsetof(KvMessageHeader, payload_bytes) * 8;

}  // namespace

FaultyTransport::FaultyTransport(std::unique_ptr<KvTransport> inner, const FaultyOptions& options)
    : inner_(std::move(inner)), options_(options), rates_(options.rates), rng_(options.seed) {
  BATON_CHECK_GT(options.max_delay_polls, 0);
  BATON_CHECK_GT(options.max_delay.nanos(), 0);
}

// The inner transport may read copies until it is gone.
FaultyTransport::~FaultyTransport() { inner_.reset(); }

void FaultyTransport::SetWakeup(std::function<void()> wakeup) {
  wakeup_ = wakeup;
  inner_->SetWakeup(std::move(wakeup));
}

void FaultyTransport::Wake() const {
  if (wakeup_) wakeup_();
}

Tick FaultyTransport::next_due() const {
  Tick next = Tick::Infinite();
  if (options_.clock == nullptr) return next;
  for (const Held& held : held_) next = std::min(next, held.due);
  return next;
}

absl::StatusOr<RegionId> FaultyTransport::Register(std::span<std::byte> memory) {
  BATON_ASSIGN_OR_RETURN(const RegionId inner, inner_->Register(memory));
  const RegionId region = regions_.Add(memory).value();
  inner_regions_.emplace(region, inner);
  return region;
}

void FaultyTransport::Unregister(RegionId region) {
  BATON_CHECK(regions_.Remove(region));
  inner_->Unregister(inner_regions_.at(region));
  inner_regions_.erase(region);
}

absl::StatusOr<TransferId> FaultyTransport::Prepare(const std::string& peer_address) {
  BATON_ASSIGN_OR_RETURN(const TransferId transfer, inner_->Prepare(peer_address));
  transfers_.emplace(transfer, Transfer());
  return transfer;
}

absl::Status FaultyTransport::CheckOpen(TransferId transfer) const {
  auto it = transfers_.find(transfer);
  if (it == transfers_.end() || it->second.released || it->second.cut || it->second.lost_told) {
    return absl::FailedPreconditionError(
        absl::StrCat("transfer ", transfer.value(), " was lost or released; Prepare a new one"));
  }
  return absl::OkStatus();
}

absl::Status FaultyTransport::Post(TransferId transfer, uint64_t post_id,
                                   const KvMessageHeader& header,
                                   std::span<const std::byte> payload) {
  const Capabilities capabilities = inner_->capabilities();
  BATON_RETURN_IF_ERROR(CheckPost(regions_, capabilities.max_message_bytes, header, payload));
  BATON_RETURN_IF_ERROR(CheckOpen(transfer));
  if (posts_in_flight_ >= capabilities.max_posts_in_flight) {
    return absl::ResourceExhaustedError(
        absl::StrCat(posts_in_flight_,
                     " posts are in flight, the most this endpoint allows; Poll, then try again"));
  }
  if (Harm(transfer, /*is_notify=*/false, header, payload)) {
    ++posts_in_flight_;
    ++transfers_.at(transfer).posts;
    // After a cut kPeerLost tells of it.
    if (transfers_.at(transfer).cut) return absl::OkStatus();
    ready_.push_back({.kind = KvEventKind::kSent, .transfer = transfer, .post_id = post_id});
    Wake();
    return absl::OkStatus();
  }
  const uint64_t id = next_inner_post_++;
  BATON_RETURN_IF_ERROR(inner_->Post(transfer, id, header, payload));
  inner_posts_.emplace(id, InnerPost{.transfer = transfer, .post_id = post_id});
  ++posts_in_flight_;
  ++transfers_.at(transfer).posts;
  Overtake(transfer, ++counts_.messages);
  return absl::OkStatus();
}

absl::Status FaultyTransport::Notify(TransferId transfer, std::span<const std::byte> bytes) {
  BATON_RETURN_IF_ERROR(CheckNotify(bytes));
  BATON_RETURN_IF_ERROR(CheckOpen(transfer));
  if (Harm(transfer, /*is_notify=*/true, KvMessageHeader(), bytes)) return absl::OkStatus();
  BATON_RETURN_IF_ERROR(inner_->Notify(transfer, bytes));
  Overtake(transfer, ++counts_.messages);
  return absl::OkStatus();
}

// All chances are drawn for each message, so that one rate does not shift another's draws.
FaultyTransport::Fate FaultyTransport::Draw() {
  Fate fate;
  fate.drop = rng_.Chance(rates_.drop);
  fate.delay = rng_.Chance(rates_.delay);
  fate.reorder = rng_.Chance(rates_.reorder);
  fate.duplicate = rng_.Chance(rates_.duplicate);
  fate.corrupt_payload = rng_.Chance(rates_.corrupt_payload);
  fate.corrupt_header = rng_.Chance(rates_.corrupt_header);
  fate.truncate = rng_.Chance(rates_.truncate);
  fate.cut = rng_.Chance(rates_.cut);
  fate.dice = rng_.Next();
  return fate;
}

bool FaultyTransport::Harm(TransferId transfer, bool is_notify, const KvMessageHeader& header,
                           std::span<const std::byte> bytes) {
  Fate fate = Draw();
  if (fate.cut || fate.drop) {
    ++counts_.messages;
    ++(fate.cut ? counts_.cut : counts_.dropped);
    if (fate.cut) Cut(transfer);
    return true;
  }
  if (!fate.needs_copy()) return false;
  const size_t copies = fate.duplicate ? 2 : 1;
  if (copied_bytes_ + copies * bytes.size() > options_.max_copied_bytes) {
    ++counts_.spared;
    return false;
  }
  Message message{.sequence = ++counts_.messages,
                  .transfer = transfer,
                  .is_notify = is_notify,
                  .header = header};
  message.bytes.resize(bytes.size());
  const absl::Status copied = is_notify ? KvTransport::CopyPayload(message.bytes, bytes)
                                        : inner_->CopyPayload(message.bytes, bytes);
  BATON_CHECK_MSG(copied.ok(), std::string(copied.message()));
  if (fate.duplicate) {
    ++counts_.duplicated;
    Message again = message;
    Damage(fate, &message);
    Hold(std::move(again), fate, /*until_overtaken=*/false);
  } else {
    Damage(fate, &message);
  }
  if (fate.delay) ++counts_.delayed;
  if (fate.reorder) ++counts_.reordered;
  // What is only damaged is due at once.
  if (!fate.delay && !fate.reorder) fate.dice = 0;
  Hold(std::move(message), fate, fate.reorder);
  if (fate.dice == 0) ForwardDue();
  return true;
}

void FaultyTransport::Damage(const Fate& fate, Message* message) {
  Rng rng(fate.dice);
  std::vector<std::byte>& bytes = message->bytes;
  if (fate.truncate && !bytes.empty()) {
    ++counts_.truncated;
    bytes.resize(rng.Below(bytes.size()));
    message->header.payload_bytes = bytes.size();
  }
  if (fate.corrupt_payload && !bytes.empty()) {
    ++counts_.corrupted_payload;
    bytes[rng.Below(bytes.size())] ^= static_cast<std::byte>(1 + rng.Below(255));
  }
  if (fate.corrupt_header && !message->is_notify) {
    ++counts_.corrupted_header;
    const uint64_t bit = rng.Below(kHeaderBits);
    std::byte raw[sizeof(KvMessageHeader)];
    std::memcpy(raw, &message->header, sizeof(raw));
    raw[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    std::memcpy(&message->header, raw, sizeof(raw));
  }
}

// Dice of zero mean no delay.
void FaultyTransport::Hold(Message message, const Fate& fate, bool until_overtaken) {
  Rng rng(fate.dice);
  Held held{.until_overtaken = until_overtaken, .due_poll = polls_};
  if (fate.dice != 0) {
    held.due_poll += 1 + rng.Below(static_cast<uint64_t>(options_.max_delay_polls));
  }
  if (options_.clock != nullptr) {
    held.due = options_.clock->Now();
    if (fate.dice != 0) {
      held.due = held.due + Duration::Nanos(static_cast<int64_t>(
                                1 + rng.Below(static_cast<uint64_t>(options_.max_delay.nanos()))));
    }
  }
  copied_bytes_ += message.bytes.size();
  ++transfers_.at(message.transfer).held;
  held.message = std::move(message);
  held_.push_back(std::move(held));
}

// Message `sequence` has gone out: earlier ones that waited for it follow at the next Poll.
void FaultyTransport::Overtake(TransferId transfer, uint64_t sequence) {
  for (Held& held : held_) {
    if (held.message.transfer != transfer || !held.until_overtaken) continue;
    if (held.message.sequence >= sequence) continue;
    held.until_overtaken = false;
    held.due_poll = polls_;
    held.due = Tick();
  }
}

bool FaultyTransport::Forward(Message* message) {
  if (message->is_notify) {
    const absl::Status status = inner_->Notify(message->transfer, message->bytes);
    if (absl::IsResourceExhausted(status)) return false;
    copied_bytes_ -= message->bytes.size();
    return true;
  }
  sending_.push_back(std::move(*message));
  auto copy = std::prev(sending_.end());
  absl::Status status = RegisterCopy(&*copy);
  const uint64_t id = next_inner_post_++;
  if (status.ok()) status = inner_->Post(copy->transfer, id, copy->header, copy->payload());
  if (status.ok()) {
    inner_posts_.emplace(id, InnerPost{.transfer = copy->transfer, .is_copy = true, .copy = copy});
    return true;
  }
  if (!absl::IsResourceExhausted(status)) {
    Finish(copy);  // the transfer is lost
    return true;
  }
  UnregisterCopy(&*copy);
  *message = std::move(*copy);
  sending_.erase(copy);
  return false;
}

// Copies it to memory that the inner transport sends from.
absl::Status FaultyTransport::RegisterCopy(Message* copy) {
  if (copy->bytes.empty()) return absl::OkStatus();
  BATON_ASSIGN_OR_RETURN(copy->sent_from, inner_->Allocate(copy->bytes.size()));
  const absl::Status status = inner_->CopyPayload(copy->payload(), copy->bytes);
  absl::StatusOr<RegionId> region =
      status.ok() ? inner_->Register(copy->payload()) : absl::StatusOr<RegionId>(status);
  if (region.ok()) {
    copy->region = *region;
  } else {
    copy->sent_from.reset();
  }
  return region.status();
}

void FaultyTransport::UnregisterCopy(Message* copy) {
  if (copy->sent_from != nullptr) inner_->Unregister(copy->region);
  copy->sent_from.reset();
}

void FaultyTransport::ForwardDue() {
  for (auto it = held_.begin(); it != held_.end();) {
    const bool is_due =
        options_.clock != nullptr ? it->due <= options_.clock->Now() : it->due_poll <= polls_;
    const TransferId transfer = it->message.transfer;
    const uint64_t sequence = it->message.sequence;
    if (!is_due || !Forward(&it->message)) {
      ++it;
      continue;
    }
    it = held_.erase(it);
    --transfers_.at(transfer).held;
    Overtake(transfer, sequence);
    ReleaseInner(transfer);
  }
}

// Hands the caller's Release on, once nothing is held back.
void FaultyTransport::ReleaseInner(TransferId transfer) {
  const Transfer& state = transfers_.at(transfer);
  if (state.released && state.held == 0 && !state.cut) inner_->Release(transfer);
}

void FaultyTransport::Finish(std::list<Message>::iterator copy) {
  UnregisterCopy(&*copy);
  copied_bytes_ -= copy->bytes.size();
  sending_.erase(copy);
}

void FaultyTransport::DropHeld(TransferId transfer) {
  for (auto it = held_.begin(); it != held_.end();) {
    if (it->message.transfer == transfer) {
      copied_bytes_ -= it->message.bytes.size();
      it = held_.erase(it);
    } else {
      ++it;
    }
  }
  transfers_.at(transfer).held = 0;
}

void FaultyTransport::Cut(TransferId transfer) {
  transfers_.at(transfer).cut = true;
  DropHeld(transfer);
  inner_->Release(transfer);
}

void FaultyTransport::Release(TransferId transfer) {
  auto it = transfers_.find(transfer);
  if (it == transfers_.end() || it->second.released) return;
  it->second.released = true;
  if (!it->second.cut) {
    ReleaseInner(transfer);
  } else if (it->second.lost_told) {
    ready_.push_back({.kind = KvEventKind::kReleased, .transfer = transfer});
    Wake();
  }
}

void FaultyTransport::Poll(std::vector<KvEvent>* events, int max_events) {
  BATON_CHECK_GT(max_events, 0);
  const size_t limit = events->size() + static_cast<size_t>(max_events);
  ++polls_;
  ForwardDue();
  for (; events->size() < limit && !ready_.empty(); ready_.pop_front()) {
    const KvEvent& event = ready_.front();
    if (event.kind == KvEventKind::kSent) {
      --posts_in_flight_;
      --transfers_.at(event.transfer).posts;
    } else {
      transfers_.erase(event.transfer);
    }
    events->push_back(event);
  }
  if (events->size() < limit) {
    const size_t room = limit - events->size();
    std::vector<KvEvent> inner;
    inner_->Poll(&inner, static_cast<int>(room));
    for (const KvEvent& event : inner) Translate(event, events);
    // Fewer events than asked for say that there are no more: not so where some were kept back.
    if (inner.size() == room && events->size() < limit) Wake();
  }
  if (!ready_.empty() || (!held_.empty() && options_.clock == nullptr)) Wake();
}

void FaultyTransport::Translate(const KvEvent& event, std::vector<KvEvent>* events) {
  switch (event.kind) {
    case KvEventKind::kReceived:
    case KvEventKind::kNotified:
      events->push_back(event);
      return;
    case KvEventKind::kSent: {
      const InnerPost post = inner_posts_.at(event.post_id);
      inner_posts_.erase(event.post_id);
      if (post.is_copy) return Finish(post.copy);
      --posts_in_flight_;
      --transfers_.at(post.transfer).posts;
      events->push_back(event);
      events->back().post_id = post.post_id;
      return;
    }
    case KvEventKind::kPeerLost:
      return TellLost(event.transfer, event.status, events);
    case KvEventKind::kReleased:
      return EndReleased(event.transfer, events);
  }
}

void FaultyTransport::TellLost(TransferId transfer, const absl::Status& status,
                               std::vector<KvEvent>* events) {
  Transfer& state = transfers_.at(transfer);
  const bool was_released = state.released;
  const bool had_held = state.held > 0;
  DropHeld(transfer);
  for (auto it = inner_posts_.begin(); it != inner_posts_.end();) {
    if (it->second.transfer != transfer) {
      ++it;
      continue;
    }
    if (it->second.is_copy) Finish(it->second.copy);
    it = inner_posts_.erase(it);
  }
  posts_in_flight_ -= std::exchange(state.posts, 0);
  state.lost_told = true;
  events->push_back({.kind = KvEventKind::kPeerLost, .transfer = transfer, .status = status});
  // The caller's Release waited for what was held back.
  if (was_released && had_held && !state.cut) inner_->Release(transfer);
}

void FaultyTransport::EndReleased(TransferId transfer, std::vector<KvEvent>* events) {
  Transfer& state = transfers_.at(transfer);
  if (state.cut && !state.lost_told) {
    TellLost(transfer, absl::UnavailableError("the transfer was cut by fault injection"), events);
  }
  if (!state.released) return;  // the caller's Release will tell
  if (state.cut) {
    ready_.push_back({.kind = KvEventKind::kReleased, .transfer = transfer});
    return;
  }
  transfers_.erase(transfer);
  events->push_back({.kind = KvEventKind::kReleased, .transfer = transfer});
}

}  // namespace baton::transport
