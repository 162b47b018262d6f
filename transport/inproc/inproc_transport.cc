#include "transport/inproc/inproc_transport.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "transport/region_table.h"
#include "transport/staging_pool.h"

namespace baton::transport {
namespace {

constexpr char kAddressPrefix[] = "baton-inproc/1/";

struct Message {
  KvEventKind kind = KvEventKind::kReceived;  // or kNotified
  KvMessageHeader header;
  StagingBuffer payload;
};

enum class Delivery : uint8_t { kDelivered, kFull, kClosed };

// The receiving side of one endpoint; senders share it.
class Inbox {
 public:
  explicit Inbox(const InprocOptions& options)
      : max_messages_(options.max_queued_messages), staging_(options.staging_bytes) {}

  // Copies `payload` in, or refuses. After kFull the sender is woken up once there is room.
  Delivery Deliver(KvEventKind kind, const KvMessageHeader& header,
                   std::span<const std::byte> payload) {
    Delivery delivery = TryDeliver(kind, header, payload);
    if (delivery == Delivery::kFull) {
      {
        std::lock_guard<std::mutex> lock(mutex_);
        starved_ = true;
      }
      // Room that was freed before the mark was set is seen now, later room is announced.
      delivery = TryDeliver(kind, header, payload);
    }
    // Also when it is full: the owner's next Poll frees what its last one gave out.
    if (delivery != Delivery::kClosed) Wake();
    return delivery;
  }

  // Moves at most `max` messages out.
  void Take(int max, std::vector<Message>* out) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (int i = 0; i < max && !messages_.empty(); ++i) {
      out->push_back(std::move(messages_.front()));
      messages_.pop_front();
    }
  }

  // The owner has freed staging or queue slots: wakes the senders that may wait for them.
  void AnnounceRoom() {
    std::vector<std::shared_ptr<Inbox>> senders;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!std::exchange(starved_, false)) return;
      senders = LiveSenders();
    }
    for (const auto& sender : senders) sender->Wake();
  }

  // The owner has taken messages: if that left a sender waiting, another Poll is due to free them.
  void WakeIfStarved() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!starved_) return;
    }
    Wake();
  }

  void AddSender(const std::shared_ptr<Inbox>& sender) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& known : LiveSenders()) {
      if (known == sender) return;
    }
    senders_.push_back(sender);
  }

  void Close() {
    std::vector<std::shared_ptr<Inbox>> senders;
    std::deque<Message> dropped;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closed_ = true;
      wakeup_.reset();
      dropped.swap(messages_);
      senders = LiveSenders();
    }
    for (const auto& sender : senders) sender->Wake();
  }

  bool closed() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return closed_;
  }

  void SetWakeup(std::function<void()> wakeup) {
    std::lock_guard<std::mutex> lock(mutex_);
    wakeup_ = std::make_shared<const std::function<void()>>(std::move(wakeup));
  }

  void Wake() {
    std::shared_ptr<const std::function<void()>> wakeup;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      wakeup = wakeup_;
    }
    if (wakeup && *wakeup) (*wakeup)();
  }

 private:
  // The payload is copied outside the lock.
  Delivery TryDeliver(KvEventKind kind, const KvMessageHeader& header,
                      std::span<const std::byte> payload) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (closed_) return Delivery::kClosed;
      if (messages_.size() + arriving_ >= max_messages_) return Delivery::kFull;
      ++arriving_;
    }
    Message message{kind, header, staging_.TryAcquire(payload.size())};
    const bool fits = static_cast<bool>(message.payload);
    if (fits && !payload.empty()) {
      std::memcpy(message.payload.bytes().data(), payload.data(), payload.size());
    }
    std::lock_guard<std::mutex> lock(mutex_);
    --arriving_;
    if (closed_) return Delivery::kClosed;
    if (!fits) return Delivery::kFull;
    messages_.push_back(std::move(message));
    return Delivery::kDelivered;
  }

  // Requires mutex_. Forgets senders that are gone.
  std::vector<std::shared_ptr<Inbox>> LiveSenders() {
    std::vector<std::shared_ptr<Inbox>> live;
    for (const auto& weak : senders_) {
      if (auto sender = weak.lock()) live.push_back(std::move(sender));
    }
    senders_.assign(live.begin(), live.end());
    return live;
  }

  const size_t max_messages_;
  StagingPool staging_;
  mutable std::mutex mutex_;
  bool closed_ = false;                                  // guarded by mutex_
  bool starved_ = false;                                 // guarded by mutex_
  size_t arriving_ = 0;                                  // guarded by mutex_
  std::deque<Message> messages_;                         // guarded by mutex_
  std::vector<std::weak_ptr<Inbox>> senders_;            // guarded by mutex_
  std::shared_ptr<const std::function<void()>> wakeup_;  // guarded by mutex_
};

}  // namespace

struct InprocFabric::Directory {
  std::mutex mutex;
  uint64_t next = 1;                                    // guarded by mutex
  std::map<std::string, std::weak_ptr<Inbox>> inboxes;  // by address; guarded by mutex
};

namespace {

class InprocEndpoint final : public KvTransport {
 public:
  InprocEndpoint(std::shared_ptr<InprocFabric::Directory> directory, std::string address,
                 std::shared_ptr<Inbox> inbox, const InprocOptions& options)
      : directory_(std::move(directory)),
        address_(std::move(address)),
        inbox_(std::move(inbox)),
        options_(options) {}

  ~InprocEndpoint() override {
    {
      std::lock_guard<std::mutex> lock(directory_->mutex);
      directory_->inboxes.erase(address_);
    }
    inbox_->Close();
  }

  Capabilities capabilities() const override {
    return {.name = "inproc",
            .across_processes = false,
            .device_memory = false,
            .max_message_bytes = options_.max_message_bytes,
            .max_posts_in_flight = options_.max_posts_in_flight};
  }

  std::string address() const override { return address_; }
  absl::StatusOr<RegionId> Register(std::span<std::byte> memory) override {
    return regions_.Add(memory);
  }
  void Unregister(RegionId region) override { BATON_CHECK(regions_.Remove(region)); }
  void SetWakeup(std::function<void()> wakeup) override { inbox_->SetWakeup(std::move(wakeup)); }

  absl::StatusOr<TransferId> Prepare(const std::string& peer_address) override {
    if (peer_address.compare(0, sizeof(kAddressPrefix) - 1, kAddressPrefix) != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "Prepare: the peer's address (", peer_address.size(),
          " bytes) is not one of transport 'inproc'; use the same transport on both workers"));
    }
    if (transfers_.size() >= options_.max_transfers) {
      return absl::ResourceExhaustedError(
          absl::StrCat("Prepare: ", transfers_.size(),
                       " transfers are open, the most this endpoint allows; Release some"));
    }
    Transfer transfer;
    {
      std::lock_guard<std::mutex> lock(directory_->mutex);
      auto it = directory_->inboxes.find(peer_address);
      if (it != directory_->inboxes.end()) transfer.peer = it->second.lock();
    }
    if (transfer.peer) transfer.peer->AddSender(inbox_);
    const TransferId id(next_transfer_++);
    const bool lost = transfer.peer == nullptr;
    transfers_.emplace(id, std::move(transfer));
    if (lost) inbox_->Wake();
    return id;
  }

  absl::Status Post(TransferId id, uint64_t post_id, const KvMessageHeader& header,
                    std::span<const std::byte> payload) override {
    BATON_RETURN_IF_ERROR(CheckPost(regions_, options_.max_message_bytes, header, payload));
    return Send(
        id,
        {.kind = KvEventKind::kReceived, .post_id = post_id, .header = header, .payload = payload});
  }

  absl::Status Notify(TransferId id, std::span<const std::byte> bytes) override {
    BATON_RETURN_IF_ERROR(CheckNotify(bytes));
    return Send(id, {.kind = KvEventKind::kNotified, .payload = bytes});
  }

  void Release(TransferId id) override {
    auto it = transfers_.find(id);
    if (it == transfers_.end()) return;
    it->second.released = true;
    inbox_->Wake();
  }

  void Poll(std::vector<KvEvent>* events, int max_events) override {
    BATON_CHECK_GT(max_events, 0);
    const size_t limit = events->size() + static_cast<size_t>(max_events);
    if (!polled_.empty()) {
      polled_.clear();
      inbox_->AnnounceRoom();
    }
    AdvanceTransfers();
    for (; events->size() < limit && !ready_.empty(); ready_.pop_front()) {
      if (ready_.front().kind == KvEventKind::kSent) --posts_in_flight_;
      events->push_back(std::move(ready_.front()));
    }
    inbox_->Take(static_cast<int>(limit - events->size()), &polled_);
    for (const Message& message : polled_) {
      events->push_back(
          {.kind = message.kind, .header = message.header, .payload = message.payload.bytes()});
    }
    if (!polled_.empty()) inbox_->WakeIfStarved();
  }

 private:
  struct Outgoing {
    KvEventKind kind = KvEventKind::kReceived;  // what it will be at the receiver
    uint64_t post_id = 0;
    KvMessageHeader header;
    std::span<const std::byte> payload;
    std::vector<std::byte> copy;  // of a notify that has to wait; `payload` points to it
  };

  struct Transfer {
    std::shared_ptr<Inbox> peer;  // null: nobody was there
    std::deque<Outgoing> waiting;
    bool released = false;
    bool lost = false;
  };

  absl::Status Send(TransferId id, Outgoing out) {
    auto it = transfers_.find(id);
    if (it == transfers_.end() || it->second.released || it->second.lost) {
      return absl::FailedPreconditionError(
          absl::StrCat("transfer ", id.value(), " was lost or released; Prepare a new one"));
    }
    const bool is_post = out.kind == KvEventKind::kReceived;
    uint32_t& in_flight = is_post ? posts_in_flight_ : notifies_waiting_;
    if (in_flight >= options_.max_posts_in_flight) {
      return absl::ResourceExhaustedError(
          absl::StrCat(in_flight, is_post ? " posts" : " notifies",
                       " are in flight, the most this endpoint allows; Poll, then try again"));
    }
    Transfer& transfer = it->second;
    Delivery delivery = Delivery::kFull;
    if (transfer.peer && transfer.waiting.empty()) {
      delivery = transfer.peer->Deliver(out.kind, out.header, out.payload);
    }
    if (delivery == Delivery::kDelivered) {
      if (is_post) {
        ++posts_in_flight_;
        ready_.push_back({.kind = KvEventKind::kSent, .transfer = id, .post_id = out.post_id});
        inbox_->Wake();
      }
      return absl::OkStatus();
    }
    ++in_flight;
    if (!is_post) {
      out.copy.assign(out.payload.begin(), out.payload.end());
      out.payload = out.copy;
    }
    transfer.waiting.push_back(std::move(out));
    return absl::OkStatus();
  }

  // Tries what waits again, notices peers that are gone, ends transfers that are done.
  void AdvanceTransfers() {
    for (auto it = transfers_.begin(); it != transfers_.end();) {
      Transfer& transfer = it->second;
      if (!transfer.lost) AdvanceTransfer(it->first, &transfer);
      if (transfer.released && transfer.waiting.empty()) {
        ready_.push_back({.kind = KvEventKind::kReleased, .transfer = it->first});
        it = transfers_.erase(it);
      } else {
        ++it;
      }
    }
  }

  void AdvanceTransfer(TransferId id, Transfer* transfer) {
    Delivery delivery =
        transfer->peer && !transfer->peer->closed() ? Delivery::kDelivered : Delivery::kClosed;
    while (delivery == Delivery::kDelivered && !transfer->waiting.empty()) {
      Outgoing& out = transfer->waiting.front();
      delivery = transfer->peer->Deliver(out.kind, out.header, out.payload);
      if (delivery != Delivery::kDelivered) break;
      if (out.kind == KvEventKind::kReceived) {
        ready_.push_back({.kind = KvEventKind::kSent, .transfer = id, .post_id = out.post_id});
      } else {
        --notifies_waiting_;
      }
      transfer->waiting.pop_front();
    }
    if (delivery != Delivery::kClosed) return;
    transfer->lost = true;
    for (const Outgoing& out : transfer->waiting) {
      --(out.kind == KvEventKind::kReceived ? posts_in_flight_ : notifies_waiting_);
    }
    transfer->waiting.clear();
    ready_.push_back({.kind = KvEventKind::kPeerLost,
                      .transfer = id,
                      .status = absl::UnavailableError("the peer's endpoint is gone")});
  }

  const std::shared_ptr<InprocFabric::Directory> directory_;
  const std::string address_;
  const std::shared_ptr<Inbox> inbox_;
  const InprocOptions options_;
  RegionTable regions_;
  uint64_t next_transfer_ = 1;
  std::map<TransferId, Transfer> transfers_;
  uint32_t posts_in_flight_ = 0;   // posted, kSent not yet polled
  uint32_t notifies_waiting_ = 0;  // for room at the receiver
  std::deque<KvEvent> ready_;
  std::vector<Message> polled_;  // backs the payloads of the last Poll
};

}  // namespace

InprocFabric::InprocFabric() : directory_(std::make_shared<Directory>()) {}

std::unique_ptr<KvTransport> InprocFabric::NewEndpoint(const std::string& name,
                                                       const InprocOptions& options) {
  BATON_CHECK_GE(options.staging_bytes, StagingPool::RoundedBytes(options.max_message_bytes));
  BATON_CHECK_GT(options.max_posts_in_flight, 0u);
  BATON_CHECK_GT(options.max_queued_messages, 0u);
  auto inbox = std::make_shared<Inbox>(options);
  std::string address;
  {
    std::lock_guard<std::mutex> lock(directory_->mutex);
    address = absl::StrCat(kAddressPrefix, directory_->next++, "/", name);
    directory_->inboxes.emplace(address, inbox);
  }
  return std::make_unique<InprocEndpoint>(directory_, std::move(address), std::move(inbox),
                                          options);
}

}  // namespace baton::transport
