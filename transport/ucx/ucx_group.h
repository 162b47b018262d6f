#ifndef BATON_TRANSPORT_UCX_UCX_GROUP_H_
#define BATON_TRANSPORT_UCX_UCX_GROUP_H_

// Groups whose ranks are processes, on one or more hosts. The ranks find each other over TCP
// (group/formation.h), keep those connections for news (group/control.h), and send their data
// through UCX.
//
// Peers are trusted, as in ucx_transport.h: who can reach the port can claim to be a rank. What is
// no handshake is refused and does no harm.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/log.h"
#include "transport/group/group.h"

namespace baton::transport {

struct UcxGroupOptions {
  // "host:port" where the ranks listen, by rank; or of rank 0 alone, which then has to be in every
  // group. With all of them any rank may be absent, and a rank that comes back is noticed.
  std::vector<std::string> addresses;
  // Where this rank listens, for formation only. Empty: on every IPv4 address. Its port has to be
  // the one in `addresses`; a rank that is not listed there may take any free one (0).
  std::string listen_ip;
  uint16_t listen_port = 0;
  std::string tls = "posix,tcp";    // as in UcxOptions
  std::string net_devices = "all";  // as in UcxOptions; all ranks must be reachable through them
  Duration keepalive_interval = Duration::Millis(500);
  Log log;
};

class UcxRendezvous : public Rendezvous {
 public:
  // The port that it listens on.
  virtual uint16_t port() const = 0;
  // For the next Join.
  virtual void SetAddresses(std::vector<std::string> addresses) = 0;
};

// FAILED_PRECONDITION with the fix when it cannot listen.
absl::StatusOr<std::unique_ptr<UcxRendezvous>> CreateUcxRendezvous(const UcxGroupOptions& options,
                                                                   std::shared_ptr<Clock> clock);

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_UCX_UCX_GROUP_H_
