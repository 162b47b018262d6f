#ifndef BATON_TRANSPORT_UCX_UCX_ADDRESS_H_
#define BATON_TRANSPORT_UCX_UCX_ADDRESS_H_

// The bytes that UCX endpoints hand to their peers: where to connect, behind a header that tells
// foreign or damaged bytes from an address. UCX agrees on shared memory or RDMA over that
// connection. Pure functions; what they need to know of the host is in ucx_host.h.

#include <array>
#include <compare>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace baton::transport {

struct UcxVersion {
  unsigned major = 0;
  unsigned minor = 0;
};

// IPv4 in the first 4 bytes, the rest zero; or IPv6. Network byte order.
struct IpAddress {
  bool is_v6 = false;
  std::array<uint8_t, 16> bytes = {};
  friend auto operator<=>(const IpAddress&, const IpAddress&) = default;
};

// An address of this host, with the length of its network's prefix in bits.
struct IpInterface {
  IpAddress address;
  int prefix_bits = 0;
};

struct UcxAddress {
  uint64_t host_id = 0;  // equal when loopback leads from one to the other
  uint64_t incarnation = 0;
  uint16_t port = 0;
  std::vector<IpAddress> ips;  // 1 to 32; loopback reaches it on its own host
};

inline constexpr size_t kMaxUcxIps = 32;

// Layout, little-endian: "BKUC", format u8, UCX major u8, UCX minor u8, zero u8, FNV-1a of the rest
// u64; then host_id u64, incarnation u64, port u16, count u8 and 17 bytes for each IP address.
std::string EncodeUcxAddress(UcxVersion version, const UcxAddress& address);

// INVALID_ARGUMENT when `bytes` are no address, or one of another UCX release than `version`
// (releases do not understand each other reliably).
absl::StatusOr<UcxAddress> DecodeUcxAddress(UcxVersion version, const std::string& bytes);

// Which of the peer's addresses to connect to: one in a network that `local` is in too, else the
// first.
IpAddress ChooseIp(const std::vector<IpInterface>& local, const UcxAddress& peer);

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_UCX_UCX_ADDRESS_H_
