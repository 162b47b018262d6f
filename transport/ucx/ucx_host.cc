#include "transport/ucx/ucx_host.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <ifaddrs.h>
#include <linux/filter.h>
#include <net/if.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <set>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace baton::transport {
namespace {

struct NamedInterface {
  std::string name;
  bool is_loopback = false;
  IpInterface interface;
};

IpAddress FromSocketAddress(const sockaddr* address) {
  IpAddress ip;
  ip.is_v6 = address->sa_family == AF_INET6;
  if (ip.is_v6) {
    std::memcpy(ip.bytes.data(), &reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr, 16);
  } else {
    std::memcpy(ip.bytes.data(), &reinterpret_cast<const sockaddr_in*>(address)->sin_addr, 4);
  }
  return ip;
}

int PrefixBits(const sockaddr* mask) {
  int bits = 0;
  for (const uint8_t byte : FromSocketAddress(mask).bytes) bits += std::popcount(byte);
  return bits;
}

// Every IPv4 address of an interface that is up: the listener takes IPv4 unless it is told an
// address.
std::vector<NamedInterface> AllInterfaces() {
  ifaddrs* raw = nullptr;
  if (getifaddrs(&raw) != 0) return {};
  const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> list(raw, &freeifaddrs);
  std::vector<NamedInterface> out;
  for (const ifaddrs* entry = raw; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr || entry->ifa_netmask == nullptr) continue;
    if ((entry->ifa_flags & IFF_UP) == 0 || entry->ifa_addr->sa_family != AF_INET) continue;
    out.push_back({entry->ifa_name,
                   (entry->ifa_flags & IFF_LOOPBACK) != 0,
                   {FromSocketAddress(entry->ifa_addr), PrefixBits(entry->ifa_netmask)}});
  }
  return out;
}

struct BoundSocket {
  int fd = -1;
  bool listens = false;
};

std::vector<BoundSocket> SocketsOnPort(uint16_t port) {
  std::vector<BoundSocket> out;
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(opendir("/proc/self/fd"), &closedir);
  if (dir == nullptr) return out;
  while (const dirent* entry = readdir(dir.get())) {
    int fd = -1;
    if (!absl::SimpleAtoi(entry->d_name, &fd)) continue;
    sockaddr_storage storage = {};
    socklen_t length = sizeof(storage);
    if (getsockname(fd, reinterpret_cast<sockaddr*>(&storage), &length) != 0) continue;
    if (storage.ss_family != AF_INET && storage.ss_family != AF_INET6) continue;
    int type = 0, listens = 0;
    socklen_t size = sizeof(int);
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) != 0 || type != SOCK_STREAM) continue;
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) != 0) continue;
    if (PortOf(storage) == port) out.push_back({fd, listens != 0});
  }
  return out;
}

}  // namespace

void StopAccepting(uint16_t port) {
  sock_filter drop_all[] = {BPF_STMT(BPF_RET | BPF_K, 0)};
  const sock_fprog program = {1, drop_all};
  for (const BoundSocket& socket : SocketsOnPort(port)) {
    if (!socket.listens) continue;
    setsockopt(socket.fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program));
  }
}

bool HasConnections(uint16_t port) {
  // The listening socket is asked first: what has left its queue by then is found as a connection.
  std::vector<BoundSocket> sockets = SocketsOnPort(port);
  for (const BoundSocket& socket : sockets) {
    pollfd fd = {socket.fd, POLLIN, 0};
    if (socket.listens && poll(&fd, 1, 0) > 0) return true;
  }
  sockets = SocketsOnPort(port);
  return std::any_of(sockets.begin(), sockets.end(), [](const auto& s) { return !s.listens; });
}

void ShutDownConnections(uint16_t port) {
  for (const BoundSocket& socket : SocketsOnPort(port)) {
    if (!socket.listens) shutdown(socket.fd, SHUT_RDWR);
  }
}

uint64_t HostId() {
  std::string boot_id;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot_id;
  struct stat network = {};
  const ino_t inode = stat("/proc/self/ns/net", &network) == 0 ? network.st_ino : 0;
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : absl::StrCat(boot_id, "/", inode)) {
    hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  }
  return hash;
}

uint64_t RandomIncarnation() {
  uint64_t value = 0;
  // Does not fail for so few bytes; zero would do as well.
  [[maybe_unused]] const ssize_t bytes = getrandom(&value, sizeof(value), 0);
  return value;
}

absl::StatusOr<std::vector<IpInterface>> LocalInterfaces(const std::string& net_devices) {
  const std::set<std::string> wanted = absl::StrSplit(net_devices, ',');
  const std::vector<NamedInterface> all = AllInterfaces();
  const auto pick = [&](const std::function<bool(const NamedInterface&)>& accept) {
    std::vector<IpInterface> out;
    for (const NamedInterface& named : all) {
      if (accept(named) && out.size() < kMaxUcxIps) out.push_back(named.interface);
    }
    return out;
  };
  std::vector<IpInterface> out = pick([&](const auto& i) { return wanted.contains(i.name); });
  if (out.empty()) out = pick([](const auto& i) { return !i.is_loopback; });
  if (out.empty()) out = pick([](const auto&) { return true; });
  if (out.empty()) {
    return absl::FailedPreconditionError(
        "no network interface with an IPv4 address is up; bring one up (loopback is enough on one "
        "host: 'ip link set lo up') or set listen_ip");
  }
  return out;
}

absl::StatusOr<IpAddress> ParseIp(const std::string& text) {
  IpAddress ip;
  if (inet_pton(AF_INET, text.c_str(), ip.bytes.data()) == 1) return ip;
  ip.is_v6 = true;
  if (inet_pton(AF_INET6, text.c_str(), ip.bytes.data()) == 1) return ip;
  return absl::InvalidArgumentError(
      absl::StrCat("'", text, "' is no IP address; write e.g. 10.0.0.5 or fd00::5"));
}

IpAddress LoopbackIp() { return {.is_v6 = false, .bytes = {127, 0, 0, 1}}; }

SocketAddress ToSocketAddress(const IpAddress& ip, uint16_t port) {
  SocketAddress out;
  if (ip.is_v6) {
    auto* address = reinterpret_cast<sockaddr_in6*>(&out.storage);
    address->sin6_family = AF_INET6;
    address->sin6_port = htons(port);
    std::memcpy(&address->sin6_addr, ip.bytes.data(), 16);
    out.length = sizeof(*address);
  } else {
    auto* address = reinterpret_cast<sockaddr_in*>(&out.storage);
    address->sin_family = AF_INET;
    address->sin_port = htons(port);
    std::memcpy(&address->sin_addr, ip.bytes.data(), 4);
    out.length = sizeof(*address);
  }
  return out;
}

uint16_t PortOf(const sockaddr_storage& storage) {
  if (storage.ss_family == AF_INET6) {
    return ntohs(reinterpret_cast<const sockaddr_in6*>(&storage)->sin6_port);
  }
  return ntohs(reinterpret_cast<const sockaddr_in*>(&storage)->sin_port);
}

}  // namespace baton::transport
