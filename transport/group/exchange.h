#ifndef BATON_TRANSPORT_GROUP_EXCHANGE_H_
#define BATON_TRANSPORT_GROUP_EXCHANGE_H_

// The one thing that a transport has to do for a group: a call in which every rank sends something,
// or nothing, to every other rank, behind a header that says which call it takes part in. All
// collectives are made of it (exchange_collectives.h), so it alone deals with deadlines, dead ranks
// and calls that do not match.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "transport/group/buffer_ops.h"
#include "transport/group/group_state.h"

namespace baton::transport {

enum class CallKind : uint8_t {
  kAllReduceF32 = 1,
  kAllReduceBF16,
  kAllGather,
  kBroadcast,
  kAllToAllV,
  kBarrier,
};

// What all ranks must agree on; ranks compare it with each peer's before they take its bytes.
struct CallShape {
  CallKind kind = CallKind::kBarrier;
  uint8_t part = 0;    // of a kind that takes several exchanges
  int16_t root = -1;   // kBroadcast
  uint64_t bytes = 0;  // of the caller's data where it is the same on all ranks
  friend bool operator==(const CallShape&, const CallShape&) = default;
};

// "Broadcast of 4096 bytes from rank 2".
std::string Describe(const CallShape& shape);
// The name of its kind.
const char* CallName(const CallShape& shape);

// Travels in front of each message, little-endian.
struct CallHeader {
  uint64_t group_key = 0;  // drawn when the group was formed
  uint64_t call = 0;       // counted from 1
  uint64_t bytes = 0;
  uint64_t payload_bytes = 0;
  int32_t source_rank = 0;
  int16_t root = 0;
  uint8_t kind = 0;
  uint8_t part = 0;
};
static_assert(sizeof(CallHeader) == 40);

// When a caller wants it over, and what it had asked for, for messages.
struct CallLimit {
  Tick deadline;
  Duration timeout;
};

using SendSpan = std::span<const std::byte>;
using RecvSpan = std::span<std::byte>;

class Exchange;

// What an exchange of a GPU's memory has in addition. Its Run returns when the call has its place
// in the queue of the GPU's work.
class DeviceExchange {
 public:
  virtual ~DeviceExchange() = default;
  // The exchange of the host's memory among the same ranks, in one order of calls with it.
  virtual Exchange& OnHost() = 0;
  // As in DeviceCalls.
  virtual absl::Status Settle(const CallLimit& limit) = 0;
  virtual void TrustSizes(bool trusted) = 0;
};

class Exchange {
 public:
  virtual ~Exchange() = default;

  // Sends send[r] to each present rank r, and fills recv[r] with what it sends. One entry for each
  // rank; those of this rank and of absent ones are ignored. Returns OK when all of recv is there
  // and all of send may be reused. On failure the group is broken, everybody has been told, and the
  // buffers are no longer touched.
  virtual absl::Status Run(const CallShape& shape, std::span<const SendSpan> send,
                           std::span<const RecvSpan> recv, const CallLimit& limit) = 0;

  // Breaks the group for calls after `last_good_call` and tells the others.
  virtual void Abort(GroupFailure failure, uint64_t last_good_call) = 0;
  // Tells the others that this rank is about to make its next call.
  virtual void Ring() = 0;
  // As in Collectives.
  virtual std::vector<int> GoneRanks() = 0;
  virtual void MoveOn() = 0;

  virtual GroupState& state() = 0;

  // Itself, where it is one of a GPU's memory.
  virtual DeviceExchange* device() { return nullptr; }

  // Once: what works on buffers of the kind that Run takes. Does not outlive the exchange.
  virtual std::unique_ptr<BufferOps> TakeBuffers() { return MakeHostBuffers(); }
};

// The failures that Run can find, as one rank (`state`'s) sees them.
GroupFailure SilentRanks(const GroupState& state, const CallShape& shape, uint64_t call,
                         std::vector<int> suspects, const CallLimit& limit);
GroupFailure DifferentCalls(const GroupState& state, uint64_t call, const CallShape& ours, int peer,
                            const CallShape& theirs);
GroupFailure DifferentSizes(const GroupState& state, uint64_t call, const CallShape& shape,
                            int peer, uint64_t sent_bytes, uint64_t expected_bytes);

// What others hear of this rank when it leaves, for good or for a newer group.
absl::Status LeftError(const GroupState& state);
absl::Status MovedOnError(const GroupState& state);

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_GROUP_EXCHANGE_H_
