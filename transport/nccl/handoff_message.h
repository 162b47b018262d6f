#ifndef BATON_TRANSPORT_NCCL_HANDOFF_MESSAGE_H_
#define BATON_TRANSPORT_NCCL_HANDOFF_MESSAGE_H_

// What two NCCL endpoints tell each other over TCP (frames of kind kHandoff). A connection serves
// one direction: who connects sends payloads, who accepts receives them.
//
//   sender                          receiver
//   kHello (place, number: the      kWelcome (place, number: its staging's bytes) or kRefused
//   (text)
//     incarnation it looks for)
//   kOpen (number, text: unique id) joins communicator `number`, in place of an earlier one
//   kClosed (number)                leaves it
//                                   kEvict (number): has left it; open another one when needed
//   kOffer (number, entries)        kGrant (number, address), once the receive is launched
//   kCopied (number)                kReceived (number): the batch stands in staging
//   kNotify (text)
//
// Batches are numbered from 1 on, offered, granted and received in order. kCopied only where an
// endpoint sends to itself: it copies to the granted address.

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "transport/kv_transport.h"

namespace baton::transport {

enum class HandoffKind : uint8_t {
  kHello = 1,
  kWelcome,
  kRefused,
  kOpen,
  kClosed,
  kEvict,
  kOffer,
  kGrant,
  kCopied,
  kReceived,
  kNotify,
};

// Of one batch.
inline constexpr size_t kMaxBatchMessages = 128;

// Whose memory, and where.
struct HandoffPlace {
  uint64_t endpoint = 0;  // its incarnation
  std::array<char, 16> gpu = {};
  friend bool operator==(const HandoffPlace&, const HandoffPlace&) = default;
};

struct OfferEntry {
  KvMessageHeader header;
  // The payload lies right behind the last entry's in the sender's memory: one piece for NCCL.
  bool continues = false;
};

struct HandoffMessage {
  HandoffKind kind = HandoffKind::kHello;
  uint64_t number = 0;
  uint64_t address = 0;
  HandoffPlace place;
  std::string text;
  std::vector<OfferEntry> entries;
};

std::string EncodeHandoff(const HandoffMessage& message);
// INVALID_ARGUMENT when these bytes are no message.
absl::StatusOr<HandoffMessage> DecodeHandoff(std::string_view bytes);

// Bytes of all payloads.
uint64_t PayloadBytes(const std::vector<OfferEntry>& entries);
// Sizes of the pieces that entries make up, without empty ones.
std::vector<uint64_t> PieceBytes(const std::vector<OfferEntry>& entries);

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_NCCL_HANDOFF_MESSAGE_H_
