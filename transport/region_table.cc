#include "transport/region_table.h"

#include <functional>

#include "absl/strings/str_cat.h"

namespace baton::transport {

absl::StatusOr<RegionId> RegionTable::Add(std::span<std::byte> memory) {
  if (memory.empty()) {
    return absl::InvalidArgumentError("Register: the memory is empty; pass at least one byte");
  }
  const RegionId id(next_++);
  regions_.emplace(id, memory);
  return id;
}

bool RegionTable::Remove(RegionId region) { return regions_.erase(region) == 1; }

std::optional<RegionId> RegionTable::Find(std::span<const std::byte> bytes) const {
  const std::less_equal<const std::byte*> not_after;
  for (const auto& [id, region] : regions_) {
    if (not_after(region.data(), bytes.data()) &&
        not_after(bytes.data() + bytes.size(), region.data() + region.size())) {
      return id;
    }
  }
  return std::nullopt;
}

absl::Status CheckPost(const RegionTable& regions, uint64_t max_message_bytes,
                       const KvMessageHeader& header, std::span<const std::byte> payload) {
  if (header.payload_bytes != payload.size()) {
    return absl::InvalidArgumentError(absl::StrCat("Post: header.payload_bytes is ",
                                                   header.payload_bytes, " but the payload has ",
                                                   payload.size(), " bytes"));
  }
  if (payload.size() > max_message_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("Post: the payload has ", payload.size(), " bytes; at most ",
                     max_message_bytes, " fit into one message: post fewer pages at a time"));
  }
  if (!payload.empty() && !regions.Find(payload).has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("Post: the payload (", payload.size(),
                     " bytes) does not lie in a registered region; Register its memory first"));
  }
  return absl::OkStatus();
}

absl::Status CheckNotify(std::span<const std::byte> bytes) {
  if (bytes.size() > kMaxNotifyBytes) {
    return absl::InvalidArgumentError(absl::StrCat("Notify: ", bytes.size(), " bytes; at most ",
                                                   kMaxNotifyBytes, ": Post larger messages"));
  }
  return absl::OkStatus();
}

}  // namespace baton::transport
