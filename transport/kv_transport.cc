#include "transport/kv_transport.h"

#include <cstring>

#include "base/check.h"

namespace baton::transport {

absl::StatusOr<std::shared_ptr<std::byte>> KvTransport::Allocate(size_t bytes) {
  return std::shared_ptr<std::byte>(new std::byte[bytes](), std::default_delete<std::byte[]>());
}

absl::Status KvTransport::CopyPayload(std::span<std::byte> to, std::span<const std::byte> from) {
  BATON_CHECK_EQ(to.size(), from.size());
  if (!to.empty()) std::memcpy(to.data(), from.data(), to.size());
  return absl::OkStatus();
}

}  // namespace baton::transport
