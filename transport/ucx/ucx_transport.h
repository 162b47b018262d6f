#ifndef BATON_TRANSPORT_UCX_UCX_TRANSPORT_H_
#define BATON_TRANSPORT_UCX_UCX_TRANSPORT_H_

// KvTransport between processes, on one or more hosts, through UCX (shared memory, TCP, RDMA where
// the host has it). One endpoint owns one UCX context and worker and one progress thread, which
// makes all calls on the worker; the loop thread only exchanges commands and events with it. So
// messages move while the loop computes, and an idle endpoint sleeps in the kernel.
//
// Payloads travel by rendezvous: the receiver fetches them once it has staging room, so a slow
// receiver holds back its senders instead of dropping, and kSent means that the bytes stand in the
// receiver's staging. A peer that dies, or that takes nothing for `stall_timeout`, is lost: while a
// receiver's staging is full, its loop must Poll within that time.
//
// Peers are trusted (addresses come from workers that this one has checked): bytes that are not an
// address are refused, messages with wrong lengths or unknown ids are counted and dropped.

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/log.h"
#include "transport/kv_transport.h"

namespace baton::transport {

struct UcxOptions {
  // UCX transports to choose from, comma-separated; UCX takes the fastest that both sides have.
  // "tcp" must be among them: connections are agreed on over it. Add "rc" or "ud" for RDMA. ("cma"
  // adds nothing: it cannot cope with a peer that dies, and UCX leaves it aside.)
  std::string tls = "sysv,tcp";
  std::string net_devices = "all";  // e.g. "eth0" or "mlx5_0:1"
  // Where to listen for peers, and the only address told to them. Empty: on every IPv4 address,
  // telling those of `net_devices`. "127.0.0.1" keeps it to this host.
  std::string listen_ip;
  uint16_t listen_port = 0;  // 0: any free one
  uint64_t max_message_bytes = uint64_t{16} << 20;
  // Received and not yet polled. Allocated as needed; at least one message of the largest size must
  // fit (as StagingPool rounds it).
  uint64_t staging_bytes = uint64_t{256} << 20;
  uint32_t max_posts_in_flight = 256;  // and as many notifies
  uint32_t max_transfers = 4096;       // prepared and kReleased not yet polled
  // Announced by peers and waiting for staging; beyond it messages are dropped and counted.
  uint32_t max_waiting_messages = 4096;
  uint32_t max_peers = 1024;  // connections, both ways; kept until the peer goes
  Duration keepalive_interval = Duration::Millis(500);  // how often live connections are checked
  Duration connect_timeout = Duration::Seconds(5);      // of the first post to a peer
  Duration stall_timeout = Duration::Seconds(30);       // of a post that its peer does not take
  Log log;
};

struct UcxCounters {
  uint64_t malformed_messages = 0;  // wrong lengths; dropped
  uint64_t dropped_messages = 0;    // no room left; dropped
  uint64_t failed_receives = 0;     // the sender was lost while its message was under way
  uint64_t peers_lost = 0;
};

class UcxTransport : public KvTransport {
 public:
  // Thread-safe.
  virtual UcxCounters counters() const = 0;
  // Received bytes that are not yet polled, or under way. Thread-safe.
  virtual uint64_t staging_in_use_bytes() const = 0;
};

// INVALID_ARGUMENT for options out of range; FAILED_PRECONDITION with the fix when UCX cannot start
// with them on this host.
absl::StatusOr<std::unique_ptr<UcxTransport>> CreateUcxTransport(const UcxOptions& options,
                                                                 std::shared_ptr<Clock> clock);

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_UCX_UCX_TRANSPORT_H_
