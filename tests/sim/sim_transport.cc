#include "tests/sim/sim_transport.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace baton::sim {

using transport::KvEvent;
using transport::KvEventKind;
using transport::KvMessageHeader;
using transport::RegionId;
using transport::TransferId;

namespace {

constexpr uint64_t kMaxMessageBytes = 2 * 16 * 8;  // two pages of the stub runner
constexpr uint32_t kMaxPosts = 24;

Duration Between(Rng& rng, Duration low, Duration high) {
  return low + Duration::Nanos(static_cast<int64_t>(
                   rng.Below(static_cast<uint64_t>((high - low).nanos()) + 1)));
}

}  // namespace

std::unique_ptr<SimTransport> SimFabric::NewEndpoint(const std::string& name,
                                                     std::function<void()> on_ready) {
  return std::make_unique<SimTransport>(*this, absl::StrCat("sim/", name, "/", next_endpoint_++),
                                        std::move(on_ready));
}

void SimFabric::Carry(const std::string& to, const KvMessageHeader& header,
                      std::vector<std::byte> payload) {
  ++counts_.posted;
  if (rng_.Chance(faults_.drop)) {
    ++counts_.dropped;
    return;
  }
  SimTransport::Incoming incoming;
  incoming.event.kind = KvEventKind::kReceived;
  incoming.event.header = header;
  incoming.payload = std::move(payload);
  if (rng_.Chance(faults_.corrupt_payload) && !incoming.payload.empty()) {
    ++counts_.corrupted;
    incoming.payload[rng_.Below(incoming.payload.size())] ^=
        static_cast<std::byte>(1u << rng_.Below(8));
  }
  if (rng_.Chance(faults_.corrupt_header)) {
    ++counts_.corrupted;
    std::array<std::byte, sizeof(KvMessageHeader)> bytes;
    std::memcpy(bytes.data(), &incoming.event.header, bytes.size());
    bytes[rng_.Below(bytes.size())] ^= static_cast<std::byte>(1u << rng_.Below(8));
    std::memcpy(&incoming.event.header, bytes.data(), bytes.size());
  }
  const int copies = rng_.Chance(faults_.duplicate) ? 2 : 1;
  counts_.duplicated += copies > 1 ? 1 : 0;
  for (int copy = 0; copy < copies; ++copy) {
    Duration delay = Between(rng_, Duration::Micros(10), Duration::Micros(500));
    if (rng_.Chance(faults_.hold_back)) {
      ++counts_.held_back;
      delay = Between(rng_, Duration::Millis(1), faults_.max_hold_back);
    }
    queue_.After(delay, [this, to, incoming] {
      const auto it = endpoints_.find(to);
      if (it != endpoints_.end()) it->second->Ready(incoming);
    });
  }
}

SimTransport::SimTransport(SimFabric& fabric, std::string address, std::function<void()> on_ready)
    : fabric_(fabric), address_(std::move(address)), on_ready_(std::move(on_ready)) {
  fabric_.endpoints_.emplace(address_, this);
}

SimTransport::~SimTransport() {
  *alive_ = false;
  fabric_.endpoints_.erase(address_);
  for (const auto& [address, endpoint] : fabric_.endpoints_) {
    for (const auto& [id, transfer] : endpoint->transfers_) {
      if (transfer.peer != address_) continue;
      SimTransport* const other = endpoint;
      other->Later(Between(fabric_.rng_, Duration::Micros(100), Duration::Millis(5)),
                   [other, id = id] { other->Lose(id, "the peer's endpoint is gone"); });
    }
  }
}

transport::Capabilities SimTransport::capabilities() const {
  return {.name = "sim",
          .across_processes = true,
          .device_memory = false,
          .max_message_bytes = kMaxMessageBytes,
          .max_posts_in_flight = kMaxPosts};
}

absl::StatusOr<RegionId> SimTransport::Register(std::span<std::byte>) { return RegionId(1); }
void SimTransport::Unregister(RegionId) {}

void SimTransport::Later(Duration delay, std::function<void()> what) {
  fabric_.queue_.After(delay, [alive = alive_, what = std::move(what)] {
    if (*alive) what();
  });
}

void SimTransport::Ready(Incoming incoming) {
  ready_.push_back(std::move(incoming));
  if (wakeup_) wakeup_();
  on_ready_();
}

absl::StatusOr<TransferId> SimTransport::Prepare(const std::string& peer_address) {
  const TransferId id(next_transfer_++);
  transfers_.emplace(id, Transfer{peer_address, {}, false, false});
  if (!fabric_.endpoints_.contains(peer_address)) {
    Later(Duration::Millis(1), [this, id] { Lose(id, "nobody listens there"); });
  }
  return id;
}

absl::Status SimTransport::Post(TransferId id, uint64_t post_id, const KvMessageHeader& header,
                                std::span<const std::byte> payload) {
  BATON_CHECK_EQ(header.payload_bytes, payload.size());
  BATON_CHECK_LE(payload.size(), kMaxMessageBytes);
  const auto it = transfers_.find(id);
  if (it == transfers_.end() || it->second.lost || it->second.released) {
    return absl::FailedPreconditionError("the transfer was lost or released");
  }
  if (in_flight_ >= kMaxPosts) return absl::ResourceExhaustedError("too many posts in flight");
  if (fabric_.rng_.Chance(fabric_.faults_.cut)) {
    ++fabric_.counts_.cut;
    Later(Duration::Micros(50), [this, id] { Lose(id, "the wire was cut"); });
  }
  ++in_flight_;
  it->second.posts.insert(post_id);
  // The payload is read when it is sent, as a real fabric would: it must not change until then.
  Later(Between(fabric_.rng_, Duration::Micros(5), Duration::Micros(300)),
        [this, id, post_id, header, payload] {
          const auto at = transfers_.find(id);
          if (at == transfers_.end() || at->second.posts.erase(post_id) == 0) return;
          fabric_.Carry(at->second.peer, header, {payload.begin(), payload.end()});
          Incoming sent;
          sent.event.kind = KvEventKind::kSent;
          sent.event.transfer = id;
          sent.event.post_id = post_id;
          Ready(std::move(sent));
        });
  return absl::OkStatus();
}

void SimTransport::Lose(TransferId id, const char* why) {
  const auto it = transfers_.find(id);
  if (it == transfers_.end() || it->second.lost) return;
  it->second.lost = true;
  in_flight_ -= static_cast<uint32_t>(it->second.posts.size());
  it->second.posts.clear();
  Incoming lost;
  lost.event.kind = KvEventKind::kPeerLost;
  lost.event.transfer = id;
  lost.event.status = absl::UnavailableError(why);
  Ready(std::move(lost));
}

void SimTransport::Poll(std::vector<KvEvent>* events, int max_events) {
  for (auto it = transfers_.begin(); it != transfers_.end();) {
    const auto here = it++;
    if (!here->second.released || !here->second.posts.empty()) continue;
    Incoming released;
    released.event.kind = KvEventKind::kReleased;
    released.event.transfer = here->first;
    ready_.push_back(std::move(released));
    transfers_.erase(here);
  }
  const size_t count = std::min(ready_.size(), static_cast<size_t>(max_events));
  polled_.assign(std::make_move_iterator(ready_.begin()),
                 std::make_move_iterator(ready_.begin() + static_cast<ptrdiff_t>(count)));
  ready_.erase(ready_.begin(), ready_.begin() + static_cast<ptrdiff_t>(count));
  for (Incoming& incoming : polled_) {
    if (incoming.event.kind == KvEventKind::kSent) --in_flight_;
    incoming.event.payload = incoming.payload;
    events->push_back(incoming.event);
  }
}

void SimTransport::Release(TransferId id) {
  const auto it = transfers_.find(id);
  if (it != transfers_.end()) it->second.released = true;
}

absl::Status SimTransport::Notify(TransferId, std::span<const std::byte>) {
  return absl::UnimplementedError("nobody notifies in the simulation");
}

}  // namespace baton::sim
