#include "transport/nccl/handoff_message.h"

#include "absl/strings/str_cat.h"
#include "transport/group/frame_socket.h"

namespace baton::transport {

std::string EncodeHandoff(const HandoffMessage& message) {
  PayloadWriter out;
  out.Put(static_cast<uint8_t>(message.kind)).Put(message.number).Put(message.address);
  out.Put(message.place.endpoint).Put(message.place.gpu).Put(message.place.host);
  out.Put(static_cast<uint8_t>(message.place.puts)).PutText(message.text);
  out.Put(static_cast<uint32_t>(message.entries.size()));
  for (const OfferEntry& entry : message.entries) {
    out.Put(entry.header).Put(static_cast<uint8_t>(entry.continues));
  }
  return out.bytes();
}

absl::StatusOr<HandoffMessage> DecodeHandoff(std::string_view bytes) {
  PayloadReader in(bytes);
  HandoffMessage message;
  const uint8_t kind = in.Get<uint8_t>();
  message.number = in.Get<uint64_t>();
  message.address = in.Get<uint64_t>();
  message.place.endpoint = in.Get<uint64_t>();
  message.place.gpu = in.Get<std::array<char, 16>>();
  message.place.host = in.Get<uint64_t>();
  message.place.puts = in.Get<uint8_t>() != 0;
  message.text = in.GetText();
  const uint32_t entries = in.Get<uint32_t>();
  const bool fits = entries <= kMaxBatchMessages;
  for (uint32_t i = 0; fits && i < entries; ++i) {
    OfferEntry entry;
    entry.header = in.Get<KvMessageHeader>();
    entry.continues = in.Get<uint8_t>() != 0;
    message.entries.push_back(entry);
  }
  const bool is_known = kind >= static_cast<uint8_t>(HandoffKind::kHello) &&
                        kind <= static_cast<uint8_t>(HandoffKind::kNotify);
  if (!in.ok() || !fits || !is_known) {
    return absl::InvalidArgumentError(
        absl::StrCat("a frame of ", bytes.size(), " bytes is no message of a hand-off"));
  }
  message.kind = static_cast<HandoffKind>(kind);
  return message;
}

uint64_t PayloadBytes(const std::vector<OfferEntry>& entries) {
  uint64_t bytes = 0;
  for (const OfferEntry& entry : entries) bytes += entry.header.payload_bytes;
  return bytes;
}

std::vector<uint64_t> PieceBytes(const std::vector<OfferEntry>& entries) {
  std::vector<uint64_t> pieces;
  for (const OfferEntry& entry : entries) {
    const uint64_t bytes = entry.header.payload_bytes;
    if (bytes == 0) continue;
    if (entry.continues && !pieces.empty()) {
      pieces.back() += bytes;
    } else {
      pieces.push_back(bytes);
    }
  }
  return pieces;
}

}  // namespace baton::transport
