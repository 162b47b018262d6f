#ifndef BATON_TRANSPORT_NCCL_NCCL_ADDRESS_H_
#define BATON_TRANSPORT_NCCL_NCCL_ADDRESS_H_

// The bytes that NCCL endpoints hand to their peers: where their TCP port is. Those of a UCX
// endpoint (ucx/ucx_address.h) behind a name of their own, with NCCL's release in place of UCX's.

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "transport/ucx/ucx_address.h"

namespace baton::transport {

using NcclAddress = UcxAddress;

std::string EncodeNcclAddress(UcxVersion nccl, const NcclAddress& address);

// INVALID_ARGUMENT when `bytes` are no address, or one of another NCCL release (communicators need
// the same on both sides).
absl::StatusOr<NcclAddress> DecodeNcclAddress(UcxVersion nccl, const std::string& bytes);

// "10.0.0.1:7000" or "[fd00::1]:7000".
std::string AddressText(const IpAddress& ip, uint16_t port);

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_NCCL_NCCL_ADDRESS_H_
