#ifndef BATON_TRANSPORT_GROUP_TCP_RENDEZVOUS_H_
#define BATON_TRANSPORT_GROUP_TCP_RENDEZVOUS_H_

// Groups whose ranks are processes, on one or more hosts. The ranks find each other over TCP
// (formation.h) and keep those connections for news (control.h); how their data travels is the
// business of an Exchange, which a transport makes for each attempt (ucx/, nccl/).
//
// Peers are trusted, as in ucx_transport.h: who can reach the port can claim to be a rank. What is
// no handshake is refused and does no harm.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "transport/group/exchange.h"
#include "transport/group/formation.h"
#include "transport/group/group.h"

namespace baton::transport {

struct TcpRendezvousOptions {
  // "host:port" where the ranks listen, by rank; or of rank 0 alone, which then has to be in every
  // group. With all of them any rank may be absent, and a rank that comes back is noticed.
  std::vector<std::string> addresses;
  // Where this rank listens, for formation only. Empty: on every IPv4 address. Its port has to be
  // the one in `addresses`; a rank that is not listed there may take any free one (0).
  std::string listen_ip;
  uint16_t listen_port = 0;
};

// An exchange on its way into one generation of one group.
class FormedExchange : public Exchange {
 public:
  // Where peers send to: what the formation carries as data_address.
  virtual absl::StatusOr<std::string> Address() const = 0;
  // Once, with what the ranks have formed. ABORTED: try again.
  virtual absl::Status Connect(int rank, Formed formed, Tick deadline) = 0;
};

class ExchangeFactory {
 public:
  virtual ~ExchangeFactory() = default;
  virtual absl::StatusOr<std::unique_ptr<FormedExchange>> Create() = 0;
};

class TcpRendezvous : public Rendezvous {
 public:
  // The port that it listens on.
  virtual uint16_t port() const = 0;
  // For the next Join.
  virtual void SetAddresses(std::vector<std::string> addresses) = 0;
};

// FAILED_PRECONDITION with the fix when it cannot listen.
absl::StatusOr<std::unique_ptr<TcpRendezvous>> CreateTcpRendezvous(
    const TcpRendezvousOptions& options, std::unique_ptr<ExchangeFactory> factory,
    std::shared_ptr<Clock> clock);

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_GROUP_TCP_RENDEZVOUS_H_
