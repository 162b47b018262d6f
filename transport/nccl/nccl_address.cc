#include "transport/nccl/nccl_address.h"

#include <arpa/inet.h>

#include <string_view>

#include "absl/strings/str_cat.h"

namespace baton::transport {
namespace {

constexpr std::string_view kName = "baton-nccl/1\n";

}  // namespace

std::string EncodeNcclAddress(UcxVersion nccl, const NcclAddress& address) {
  return std::string(kName) + EncodeUcxAddress(nccl, address);
}

absl::StatusOr<NcclAddress> DecodeNcclAddress(UcxVersion nccl, const std::string& bytes) {
  if (bytes.compare(0, kName.size(), kName) != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "Prepare: the peer's address (", bytes.size(),
        " bytes) is not one of transport 'nccl'; use the same transport on both workers"));
  }
  absl::StatusOr<NcclAddress> address = DecodeUcxAddress(nccl, bytes.substr(kName.size()));
  if (address.ok()) return address;
  return absl::InvalidArgumentError(absl::StrCat(
      "Prepare: the peer's address is damaged, or the peer runs another NCCL than ", nccl.major,
      ".", nccl.minor, "; pass the bytes of address() unchanged and install one release on both"));
}

std::string AddressText(const IpAddress& ip, uint16_t port) {
  char text[INET6_ADDRSTRLEN] = {};
  inet_ntop(ip.is_v6 ? AF_INET6 : AF_INET, ip.bytes.data(), text, sizeof(text));
  return ip.is_v6 ? absl::StrCat("[", text, "]:", port) : absl::StrCat(text, ":", port);
}

}  // namespace baton::transport
