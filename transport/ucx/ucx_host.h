#ifndef BATON_TRANSPORT_UCX_UCX_HOST_H_
#define BATON_TRANSPORT_UCX_UCX_HOST_H_

// What a UCX address needs to know of the host. Thread-safe.

#include <netinet/in.h>
#include <sys/socket.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "transport/ucx/ucx_address.h"

namespace baton::transport {

// Equal in processes that share a kernel and a network namespace.
uint64_t HostId();

// Drawn from the kernel's generator.
uint64_t RandomIncarnation();

// IPv4 addresses of the interfaces that are up: those that are named in `net_devices`
// (comma-separated) or, when it names none of them, all but loopback, or loopback when there is
// nothing else. FAILED_PRECONDITION when there are none.
absl::StatusOr<std::vector<IpInterface>> LocalInterfaces(const std::string& net_devices);

// INVALID_ARGUMENT when `text` is no IPv4 or IPv6 address.
absl::StatusOr<IpAddress> ParseIp(const std::string& text);

IpAddress LoopbackIp();

// As the socket calls want it.
struct SocketAddress {
  sockaddr_storage storage = {};
  socklen_t length = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};
SocketAddress ToSocketAddress(const IpAddress& ip, uint16_t port);
// For the sockets of this process that are bound to TCP `port`, which it listens on. They belong to
// UCX, which has no call for this.
void StopAccepting(uint16_t port);        // the kernel drops further attempts to connect
bool HasConnections(uint16_t port);       // any that was accepted, or waits to be
void ShutDownConnections(uint16_t port);  // ends those that were accepted

uint16_t PortOf(const sockaddr_storage& storage);

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_UCX_UCX_HOST_H_
