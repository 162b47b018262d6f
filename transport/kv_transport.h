#ifndef BATON_TRANSPORT_KV_TRANSPORT_H_
#define BATON_TRANSPORT_KV_TRANSPORT_H_

// Moves pages of latents from prefill to decode ranks. Few verbs, all non-blocking: Register,
// Prepare, Post, Poll, Release, Notify, plus Capabilities. Message-based: what arrives is handed to
// the receiver's loop in a staging buffer and goes into live pages only after the loop has checked
// epoch and checksum, so a late or foreign write cannot touch a page. One loop thread calls all
// methods of an endpoint; a transport may run threads of its own. Delivery is at most once per
// Post; order between messages is not promised. Integrity is the receiver's check, not promised
// either.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "base/strong_id.h"

namespace baton::transport {

struct RegionIdTag;
using RegionId = StrongId<RegionIdTag, uint32_t>;
struct TransferIdTag;
using TransferId = StrongId<TransferIdTag, uint64_t>;

// Travels in front of each payload, as is (little-endian, no padding).
struct KvMessageHeader {
  uint64_t request = 0;
  uint32_t attempt = 0;
  uint32_t layer = 0;
  uint64_t epoch = 0;       // of the landing this is meant for
  uint32_t first_page = 0;  // index into the landing's pages
  uint32_t page_count = 0;
  uint32_t token_count = 0;  // valid tokens: all pages full but the last
  uint32_t source_rank = 0;
  uint64_t checksum = 0;  // of the payload, as Runner::PackPages gives it
  uint64_t payload_bytes = 0;
};
static_assert(sizeof(KvMessageHeader) == 56);

struct Capabilities {
  std::string name;  // "inproc", "ucx", ...
  bool across_processes = false;
  bool device_memory = false;  // payloads may lie in GPU memory
  uint64_t max_message_bytes = 0;
  uint32_t max_posts_in_flight = 0;  // per endpoint
};

enum class KvEventKind : uint8_t {
  kSent,      // post_id's payload may be reused; says nothing about arrival
  kReceived,  // header and payload; payload valid until the next Poll
  kNotified,  // payload of a Notify; valid until the next Poll
  kPeerLost,  // transfer is dead (status says why), at most once; its posts that were not yet kSent
              // are dropped, payloads reusable
  kReleased,  // no write of the transfer is in flight any more; the id is forgotten
};

struct KvEvent {
  KvEventKind kind = KvEventKind::kSent;
  TransferId transfer;     // sender's own id (kSent, kPeerLost, kReleased)
  uint64_t post_id = 0;    // kSent
  KvMessageHeader header;  // kReceived
  std::span<const std::byte> payload;
  absl::Status status;  // kPeerLost
};

class KvTransport {
 public:
  virtual ~KvTransport() = default;

  virtual Capabilities capabilities() const = 0;

  // Opaque address of this endpoint; peers Prepare with it. Bytes, not text.
  virtual std::string address() const = 0;

  // Memory for payloads of the kind that this transport sends best: a GPU's or pinned memory where
  // it moves bytes between GPUs, else the host's. Not registered yet; may outlive the endpoint.
  // RESOURCE_EXHAUSTED when there is not so much.
  virtual absl::StatusOr<std::shared_ptr<std::byte>> Allocate(size_t bytes);

  // Copies between payloads, this endpoint's or polled from it, and the host's memory; done on
  // return. For who cannot know what kind of memory a payload is (decorators, tests).
  virtual absl::Status CopyPayload(std::span<std::byte> to, std::span<const std::byte> from);

  // Makes memory usable for Post. It stays the caller's and must outlive the registration.
  // INVALID_ARGUMENT on an empty span, RESOURCE_EXHAUSTED when the fabric refuses.
  virtual absl::StatusOr<RegionId> Register(std::span<std::byte> memory) = 0;
  // No post of this memory may be in flight.
  virtual void Unregister(RegionId region) = 0;

  // Begins a transfer to a peer. Connecting goes on in the background; failure arrives as
  // kPeerLost. INVALID_ARGUMENT when the address is not one of this transport's,
  // RESOURCE_EXHAUSTED when too many transfers are open (Release some, Poll). Every transfer, lost
  // or not, stays open until it was released and its kReleased polled.
  virtual absl::StatusOr<TransferId> Prepare(const std::string& peer_address) = 0;

  // Sends one message. `payload` must lie in a registered region and stay untouched until kSent or
  // kPeerLost; it may be empty. RESOURCE_EXHAUSTED when too many posts are in flight (Poll, then
  // try again); FAILED_PRECONDITION when the transfer was lost or released; INVALID_ARGUMENT when
  // header.payload_bytes disagrees, the payload is not registered, or the message is too large.
  virtual absl::Status Post(TransferId transfer, uint64_t post_id, const KvMessageHeader& header,
                            std::span<const std::byte> payload) = 0;

  // Makes progress and appends what happened since the last call, at most `max_events` (> 0).
  // Payloads given out by the last call become invalid. As many events as were asked for means
  // that there may be more: call again, no wakeup announces the rest.
  virtual void Poll(std::vector<KvEvent>* events, int max_events) = 0;

  // No further Post or Notify. kReleased follows once nothing is in flight: exactly one per
  // transfer, its last event, also after kPeerLost. No effect on a transfer released before.
  virtual void Release(TransferId transfer) = 0;

  // A hint that no more will be posted for now: a transport that holds small posts back for a
  // while, to send several at once, sends them. No effect on others, nor on a transfer that is
  // over.
  virtual void Flush(TransferId /*transfer*/) {}

  // A small message (at most 4 KiB, copied) to a peer's loop. Errors as for Post. May be lost when
  // the peer's queue is full.
  virtual absl::Status Notify(TransferId transfer, std::span<const std::byte> bytes) = 0;

  // `wakeup` is called, from any thread, when Poll may have something to say; set once, before use.
  // It must not call back into the transport, nor block.
  virtual void SetWakeup(std::function<void()> wakeup) = 0;
};

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_KV_TRANSPORT_H_
