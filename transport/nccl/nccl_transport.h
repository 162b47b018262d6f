#ifndef BATON_TRANSPORT_NCCL_NCCL_TRANSPORT_H_
#define BATON_TRANSPORT_NCCL_NCCL_TRANSPORT_H_

// KvTransport between GPUs through NCCL. Payloads lie in GPU memory (or in pinned memory, where a
// host's GPUs cannot reach each other), at the sender and in the receiver's staging ring.
//
// NCCL knows neither addresses nor deadlines nor back-pressure, so two endpoints agree on
// everything over a TCP connection first: the sender offers a batch of posts, the receiver finds
// room for it, launches its receive and grants the batch, the sender launches the send, the
// receiver confirms what has arrived. So NCCL only ever gets transfers that both sides have begun,
// and kSent means that the bytes stand in the receiver's staging. Small posts wait a while for
// others (coalesce_bytes, coalesce_delay, Flush) and travel as one batch.
//
// One thread per endpoint makes all of its NCCL calls. Each pair of endpoints has a communicator of
// two ranks and a stream of its own, made when the first transfer to the peer is prepared, torn
// down when others need its place, or when the peer is lost; README.md says why pairs.
//
// Peers are trusted, as in ucx_transport.h.

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/log.h"
#include "transport/kv_transport.h"

namespace baton::transport {

enum class PayloadMemory : uint8_t {
  kAuto,    // kPinned where this GPU can reach none of several on its host, else kGpu
  kGpu,     // the GPU's own
  kPinned,  // the host's, pinned: what NCCL moves between GPUs then passes it only once
};

struct NcclTransportOptions {
  int gpu = 0;  // of this process's, from 0 on
  // As in UcxOptions; of the TCP connections. NCCL finds its own way for the payloads.
  std::string net_devices = "all";
  std::string listen_ip;
  uint16_t listen_port = 0;

  PayloadMemory memory = PayloadMemory::kAuto;
  // Where both ends ask for it and can: a sender puts into memory of the receiver's GPU that it
  // reaches, instead of a send and a receive of NCCL's. README.md says when, and how that fails.
  bool one_sided = false;
  uint64_t max_message_bytes = uint64_t{16} << 20;
  // Received and not yet polled; one ring, allocated at once. At least max_message_bytes; 0: this
  // endpoint only sends, and refuses senders.
  uint64_t staging_bytes = uint64_t{256} << 20;
  // Posts to one peer wait for others until there are so many bytes, or for so long.
  uint64_t coalesce_bytes = uint64_t{1} << 20;
  Duration coalesce_delay = Duration::Millis(20);
  uint32_t max_posts_in_flight = 256;    // and as many notifies
  uint32_t max_transfers = 4096;         // prepared and kReleased not yet polled
  uint32_t max_waiting_messages = 4096;  // received and not yet polled; notifies beyond are dropped
  uint32_t max_peers = 1024;             // connections to others, and as many from others
  uint32_t max_communicators = 64;       // towards others, and as many from others
  uint32_t max_concurrent_transfers = 8;  // peers with data under way to this GPU at a time
  int max_ctas = 4;                       // blocks of threads that NCCL may take for one transfer

  Duration connect_timeout = Duration::Seconds(10);  // of a connection, and of a communicator
  Duration stall_timeout = Duration::Seconds(30);    // of an offer that the peer does not grant
  Duration transfer_timeout = Duration::Seconds(5);  // of a batch that both sides have begun
  // Held around calls that launch on the GPU, with whoever else launches NCCL's work on it; null:
  // nobody does.
  std::shared_ptr<std::mutex> launches;
  Log log;
};

// A batch takes at most so many times coalesce_bytes, but for a message that is larger.
inline constexpr uint64_t kNcclBatchFactor = 4;

// What a window for one-sided hand-offs takes of both GPUs, for each communicator.
constexpr uint64_t NcclWindowBytes(uint64_t coalesce_bytes, uint64_t max_message_bytes) {
  const uint64_t batch = coalesce_bytes * kNcclBatchFactor;
  return batch > max_message_bytes ? batch : max_message_bytes;
}

struct NcclCounters {
  uint64_t malformed_messages = 0;  // what came over TCP was no message, or not the next one
  uint64_t dropped_notifies = 0;    // no room left
  uint64_t failed_receives = 0;     // the sender was lost while its batch was under way
  uint64_t peers_lost = 0;          // that this endpoint sends to
  uint64_t communicators = 0;       // made
  uint64_t evictions = 0;           // communicators torn down for others
  uint64_t batches_sent = 0;
  uint64_t batches_put = 0;  // of these, one-sided
};

class NcclTransport : public KvTransport {
 public:
  // Thread-safe.
  virtual NcclCounters counters() const = 0;
  // Received bytes that are not yet polled, or under way. Thread-safe.
  virtual uint64_t staging_in_use_bytes() const = 0;
};

// INVALID_ARGUMENT for options out of range, RESOURCE_EXHAUSTED when the GPU has no room for
// staging, FAILED_PRECONDITION with the fix when this program has no NCCL or cannot listen.
absl::StatusOr<std::unique_ptr<NcclTransport>> CreateNcclTransport(
    const NcclTransportOptions& options, std::shared_ptr<Clock> clock);

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_NCCL_NCCL_TRANSPORT_H_
