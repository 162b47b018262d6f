#ifndef BATON_TRANSPORT_GROUP_FORMATION_MESSAGES_H_
#define BATON_TRANSPORT_GROUP_FORMATION_MESSAGES_H_

// What ranks tell each other while they form a group (formation.h), as payloads of frames.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "transport/group/group.h"

namespace baton::transport {

// The first frame of a rank, kJoin or kKnock.
struct JoinMessage {
  GroupOptions options;  // timeout apart; absent_ranks of one that regroups: whom it takes for lost
  bool regroups = false;  // it has been in the group before; else it has just started
  uint64_t last_generation = 0;
  std::string address;  // of its listener
  std::string data_address;
};
std::string EncodeJoin(const JoinMessage& message);
// INVALID_ARGUMENT: not from this release, or damaged.
absl::StatusOr<JoinMessage> DecodeJoin(const std::string& payload);

// kWelcome: what the host tells all.
struct WelcomeMessage {
  uint64_t generation = 0;
  uint64_t key = 0;
  struct Rank {
    bool is_present = false;
    std::string name, address, data_address;
  };
  std::vector<Rank> ranks;
};
std::string EncodeWelcome(const WelcomeMessage& message);
// ABORTED where it is damaged, or for another group than this rank's.
absl::StatusOr<WelcomeMessage> DecodeWelcome(const std::string& payload,
                                             const GroupOptions& options);

// kPeer: a rank to one below it.
struct PeerMessage {
  uint64_t key = 0;
  int rank = -1;
};
std::string EncodePeer(const PeerMessage& message);
// A rank of -1 where it is damaged.
PeerMessage DecodePeer(const std::string& payload);

// kRefused: what a host's refusal means to the rank.
enum class Refusal : uint8_t {
  kForNow,   // it may come again
  kForGood,  // it does not fit
  kNoHost,   // this rank forms no such group
};
struct RefusedMessage {
  Refusal refusal = Refusal::kForNow;
  std::string why;
};
std::string EncodeRefused(const RefusedMessage& message);
// kForNow where it is damaged.
RefusedMessage DecodeRefused(const std::string& payload);

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_GROUP_FORMATION_MESSAGES_H_
