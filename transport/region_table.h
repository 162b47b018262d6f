#ifndef BATON_TRANSPORT_REGION_TABLE_H_
#define BATON_TRANSPORT_REGION_TABLE_H_

// The registered memory of one endpoint, and the checks of Post and Notify that every
// implementation makes in the same words. Not thread-safe: the loop thread's.

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "transport/kv_transport.h"

namespace baton::transport {

inline constexpr size_t kMaxNotifyBytes = 4096;

class RegionTable {
 public:
  // INVALID_ARGUMENT on an empty span.
  absl::StatusOr<RegionId> Add(std::span<std::byte> memory);
  // False when there is no such region.
  bool Remove(RegionId region);
  // The region that holds all of `bytes`, if there is one.
  std::optional<RegionId> Find(std::span<const std::byte> bytes) const;

 private:
  uint32_t next_ = 1;
  std::map<RegionId, std::span<std::byte>> regions_;
};

// INVALID_ARGUMENT unless header.payload_bytes is the payload's size, at most `max_message_bytes`,
// and the payload is empty or lies in a registered region.
absl::Status CheckPost(const RegionTable& regions, uint64_t max_message_bytes,
                       const KvMessageHeader& header, std::span<const std::byte> payload);

// INVALID_ARGUMENT when `bytes` exceeds kMaxNotifyBytes.
absl::Status CheckNotify(std::span<const std::byte> bytes);

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_REGION_TABLE_H_
