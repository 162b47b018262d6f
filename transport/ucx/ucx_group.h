#ifndef BATON_TRANSPORT_UCX_UCX_GROUP_H_
#define BATON_TRANSPORT_UCX_UCX_GROUP_H_

// Groups of processes (group/tcp_rendezvous.h) that send their data through UCX.

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/log.h"
#include "transport/group/tcp_rendezvous.h"

namespace baton::transport {

struct UcxGroupOptions : TcpRendezvousOptions {
  std::string tls = "sysv,tcp";     // as in UcxOptions
  std::string net_devices = "all";  // as in UcxOptions; all ranks must be reachable through them
  Duration keepalive_interval = Duration::Millis(500);
  Log log;
};

using UcxRendezvous = TcpRendezvous;

std::unique_ptr<ExchangeFactory> MakeUcxExchangeFactory(const UcxGroupOptions& options,
                                                        std::shared_ptr<Clock> clock);

// FAILED_PRECONDITION with the fix when it cannot listen.
absl::StatusOr<std::unique_ptr<UcxRendezvous>> CreateUcxRendezvous(const UcxGroupOptions& options,
                                                                   std::shared_ptr<Clock> clock);

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_UCX_UCX_GROUP_H_
