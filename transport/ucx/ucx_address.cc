#include "transport/ucx/ucx_address.h"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace baton::transport {
namespace {

constexpr char kMagic[4] = {'B', 'K', 'U', 'C'};
constexpr uint8_t kFormat = 1;
constexpr size_t kHeaderBytes = 16;
constexpr size_t kHashAt = 8;
constexpr size_t kFixedBytes = 19;  // host_id, incarnation, port, count
constexpr size_t kIpBytes = 17;

uint64_t Fnv1a(std::string_view bytes) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char byte : bytes) hash = (hash ^ static_cast<uint8_t>(byte)) * 0x100000001b3u;
  return hash;
}

template <typename Int>
void Append(Int value, std::string* out) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

template <typename Int>
Int Take(std::string_view* bytes) {
  Int value;
  std::memcpy(&value, bytes->data(), sizeof(value));
  bytes->remove_prefix(sizeof(value));
  return value;
}

absl::Status NotAnAddress(size_t size) {
  return absl::InvalidArgumentError(absl::StrCat(
      "Prepare: the peer's address (", size,
      " bytes) is not one of transport 'ucx'; use the same transport on both workers"));
}

bool SameNetwork(const IpInterface& local, const IpAddress& ip) {
  if (local.address.is_v6 != ip.is_v6) return false;
  for (int bit = 0; bit < local.prefix_bits; ++bit) {
    const uint8_t mask = static_cast<uint8_t>(0x80 >> (bit % 8));
    if (((local.address.bytes[bit / 8] ^ ip.bytes[bit / 8]) & mask) != 0) return false;
  }
  return true;
}

}  // namespace

std::string EncodeUcxAddress(UcxVersion version, const UcxAddress& address) {
  BATON_CHECK(!address.ips.empty() && address.ips.size() <= kMaxUcxIps);
  std::string rest;
  Append(address.host_id, &rest);
  Append(address.incarnation, &rest);
  Append(address.port, &rest);
  Append(static_cast<uint8_t>(address.ips.size()), &rest);
  for (const IpAddress& ip : address.ips) {
    Append(static_cast<uint8_t>(ip.is_v6), &rest);
    Append(ip.bytes, &rest);
  }
  std::string out(kMagic, sizeof(kMagic));
  Append(kFormat, &out);
  Append(static_cast<uint8_t>(version.major), &out);
  Append(static_cast<uint8_t>(version.minor), &out);
  Append(uint8_t{0}, &out);
  Append(Fnv1a(rest), &out);
  return out + rest;
}

absl::StatusOr<UcxAddress> DecodeUcxAddress(UcxVersion version, const std::string& bytes) {
  if (bytes.size() < kHeaderBytes + kFixedBytes + kIpBytes ||
      std::memcmp(bytes.data(), kMagic, sizeof(kMagic)) != 0 ||
      static_cast<uint8_t>(bytes[4]) != kFormat) {
    return NotAnAddress(bytes.size());
  }
  const UcxVersion theirs{static_cast<uint8_t>(bytes[5]), static_cast<uint8_t>(bytes[6])};
  if (theirs.major != version.major || theirs.minor != version.minor) {
    return absl::InvalidArgumentError(
        absl::StrCat("Prepare: the peer runs UCX ", theirs.major, ".", theirs.minor, ", this one ",
                     version.major, ".", version.minor, "; install the same release on both"));
  }
  std::string_view rest = std::string_view(bytes).substr(kHashAt);
  if (Take<uint64_t>(&rest) != Fnv1a(rest)) {
    return absl::InvalidArgumentError(
        "Prepare: the peer's address is damaged; pass the bytes of address() unchanged");
  }
  UcxAddress address;
  address.host_id = Take<uint64_t>(&rest);
  address.incarnation = Take<uint64_t>(&rest);
  address.port = Take<uint16_t>(&rest);
  const size_t count = Take<uint8_t>(&rest);
  if (count == 0 || count > kMaxUcxIps || rest.size() != count * kIpBytes || address.port == 0) {
    return NotAnAddress(bytes.size());
  }
  for (size_t i = 0; i < count; ++i) {
    IpAddress ip;
    ip.is_v6 = Take<uint8_t>(&rest) != 0;
    ip.bytes = Take<std::array<uint8_t, 16>>(&rest);
    address.ips.push_back(ip);
  }
  return address;
}

IpAddress ChooseIp(const std::vector<IpInterface>& local, const UcxAddress& peer) {
  for (const IpAddress& ip : peer.ips) {
    for (const IpInterface& interface : local) {
      if (SameNetwork(interface, ip)) return ip;
    }
  }
  return peer.ips.front();
}

}  // namespace baton::transport
