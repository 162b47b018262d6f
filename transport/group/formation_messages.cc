#include "transport/group/formation_messages.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "transport/group/frame_socket.h"

namespace baton::transport {
namespace {

constexpr uint32_t kProtocol = 2;

}  // namespace

std::string EncodeJoin(const JoinMessage& message) {
  const GroupOptions& options = message.options;
  PayloadWriter out;
  out.Put(kProtocol).PutText(options.group_id);
  out.Put(static_cast<int32_t>(options.world_size)).Put(static_cast<int32_t>(options.rank));
  out.PutRanks(options.absent_ranks).PutText(options.revision).PutText(options.model_hash);
  out.PutText(options.name).Put(options.reduce_part_bytes);
  out.Put(static_cast<uint8_t>(message.regroups)).Put(message.last_generation);
  out.PutText(message.address).PutText(message.data_address);
  return out.bytes();
}

absl::StatusOr<JoinMessage> DecodeJoin(const std::string& payload) {
  PayloadReader in(payload);
  const uint32_t protocol = in.Get<uint32_t>();
  if (protocol != kProtocol) {
    return absl::InvalidArgumentError(absl::StrCat("the rank speaks version ", protocol,
                                                   " of the handshake, the host ", kProtocol,
                                                   "; run one release on all ranks"));
  }
  JoinMessage message;
  GroupOptions& options = message.options;
  options.group_id = in.GetText();
  options.world_size = in.Get<int32_t>();
  options.rank = in.Get<int32_t>();
  options.absent_ranks = in.GetRanks();
  options.revision = in.GetText();
  options.model_hash = in.GetText();
  options.name = in.GetText();
  options.reduce_part_bytes = in.Get<uint64_t>();
  message.regroups = in.Get<uint8_t>() != 0;
  message.last_generation = in.Get<uint64_t>();
  message.address = in.GetText();
  message.data_address = in.GetText();
  if (!in.ok()) return absl::InvalidArgumentError("the rank's message is damaged");
  BATON_RETURN_IF_ERROR(CheckGroupOptions(options));
  return message;
}

std::string EncodeWelcome(const WelcomeMessage& message) {
  PayloadWriter out;
  out.Put(message.generation).Put(message.key).Put(static_cast<uint32_t>(message.ranks.size()));
  for (const WelcomeMessage::Rank& rank : message.ranks) {
    out.Put(static_cast<uint8_t>(rank.is_present));
    out.PutText(rank.name).PutText(rank.address).PutText(rank.data_address);
  }
  return out.bytes();
}

absl::StatusOr<WelcomeMessage> DecodeWelcome(const std::string& payload,
                                             const GroupOptions& options) {
  PayloadReader in(payload);
  WelcomeMessage message;
  message.generation = in.Get<uint64_t>();
  message.key = in.Get<uint64_t>();
  const uint32_t count = in.Get<uint32_t>();
  bool agrees = count == static_cast<uint32_t>(options.world_size);
  for (int rank = 0; agrees && rank < options.world_size; ++rank) {
    WelcomeMessage::Rank& entry = message.ranks.emplace_back();
    entry.is_present = in.Get<uint8_t>() != 0;
    entry.name = in.GetText();
    entry.address = in.GetText();
    entry.data_address = in.GetText();
    agrees = rank != options.rank || entry.is_present;
  }
  if (agrees && in.ok()) return message;
  return absl::AbortedError("the host's welcome is damaged");
}

std::string EncodePeer(const PeerMessage& message) {
  return PayloadWriter().Put(message.key).Put(static_cast<int32_t>(message.rank)).bytes();
}

PeerMessage DecodePeer(const std::string& payload) {
  PayloadReader in(payload);
  PeerMessage message;
  message.key = in.Get<uint64_t>();
  message.rank = in.Get<int32_t>();
  if (!in.ok()) message.rank = -1;
  return message;
}

std::string EncodeRefused(const RefusedMessage& message) {
  return PayloadWriter().Put(static_cast<uint8_t>(message.refusal)).PutText(message.why).bytes();
}

RefusedMessage DecodeRefused(const std::string& payload) {
  PayloadReader in(payload);
  const uint8_t refusal = in.Get<uint8_t>();
  RefusedMessage message{static_cast<Refusal>(refusal), in.GetText()};
  if (!in.ok() || refusal > static_cast<uint8_t>(Refusal::kNoHost)) {
    message.refusal = Refusal::kForNow;
  }
  return message;
}

}  // namespace baton::transport
