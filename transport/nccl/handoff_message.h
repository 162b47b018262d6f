#ifndef BATON_TRANSPORT_NCCL_HANDOFF_MESSAGE_H_
#define BATON_TRANSPORT_NCCL_HANDOFF_MESSAGE_H_

// What two NCCL endpoints tell each other over TCP (frames of kind kHandoff). A connection serves
// one direction: who connects sends payloads, who accepts receives them.
//
//   sender                          receiver
//   kHello (place, number: the      kWelcome (place, number: its staging's bytes) or kRefused
//     incarnation it looks for)       (text)
//   kOpen (number, text: unique id, joins communicator `number`, in place of an earlier one
//     address: the window's bytes,
//     0: none)
//   kClosed (number)                leaves it
//                                   kEvict (number): has left it; open another one when needed,
//                                     without a window if `text` says why
//   kOffer (number, entries)        kGrant (number, address), once the receive is launched
//   kPlaced (number)                kReceived (number): the batch stands in staging
//   kNotify (text)
//
// Batches are numbered from 1 on, offered, granted and received in order. kPlaced where the sender
// puts or copies them (handoff_channel.h): it stands at the granted address.

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
  kPlaced,
  kReceived,
  kNotify,
};

// Of one batch.
inline constexpr size_t kMaxBatchMessages = 128;

// Whose memory, and where.
struct HandoffPlace {
  uint64_t endpoint = 0;  // its incarnation
  std::array<char, 16> gpu = {};
  uint64_t host = 0;
  bool puts = false;  // takes part in one-sided hand-offs, with others on its host
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
