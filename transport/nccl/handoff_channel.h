#ifndef BATON_TRANSPORT_NCCL_HANDOFF_CHANNEL_H_
#define BATON_TRANSPORT_NCCL_HANDOFF_CHANNEL_H_

// What moves the bytes of one direction between two endpoints. Three ways:
//
//   pairs     a communicator of two ranks; each batch is a receive of one and a send of the other
//   puts      the same with a window of memory; the sender writes into the receiver's part, says so
//             (it `announces`), and only then the receiver takes the batch out of it
//   copies    where an endpoint sends to itself: the sender copies, and says so
//
// Each has a stream of its own. Batches run in the order of their calls. Nothing waits: Poll looks
// at what has become of them. The endpoint's thread makes all calls.

#include <nccl.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "transport/nccl/one_sided_calls.h"

namespace baton::transport {

// Part of a batch: contiguous memory on both sides.
struct ChannelPiece {
  std::byte* data = nullptr;
  size_t bytes = 0;
};

struct ChannelOptions {
  int gpu = 0;
  int max_ctas = 4;
  int wake_fd = -1;  // an eventfd that is written to when a batch is done; outlives the channel
  std::shared_ptr<std::mutex> launches;    // may be null
  std::optional<OneSidedCalls> one_sided;  // for channels of puts
};

enum class ChannelEnd : uint8_t { kSender, kReceiver };

class HandoffChannel {
 public:
  // Once drained() everything is freed; before, the stream, and what lies under it, are left to the
  // process's end.
  virtual ~HandoffChannel() = default;

  // Progress, and failures.
  virtual void Poll() = 0;
  virtual absl::Status failure() const = 0;
  virtual bool is_connected() const = 0;
  // Takes a batch now.
  virtual bool is_ready() const = 0;
  // NCCL is at something of which nobody tells when it is done: Poll again soon.
  virtual bool in_transition() const = 0;
  // A batch that its sender has finished has to be told of: the receiver Takes it then.
  virtual bool announces() const = 0;

  // The receiver, is_ready() only: a batch is going to stand in `to`, which stays untouched until
  // it has finished, or the channel drained. `pieces`: bytes of each of the sender's. Answers what
  // the sender has to be told of where to put it; nothing: there is no room now, ask again.
  virtual absl::StatusOr<std::optional<uint64_t>> Expect(uint64_t batch, std::span<std::byte> to,
                                                         std::span<const uint64_t> pieces) = 0;
  // The sender, is_ready() only: `where` is what the receiver's Expect has answered. The pieces
  // stay untouched until the batch has finished, or the channel drained.
  virtual absl::Status Send(uint64_t batch, std::span<const ChannelPiece> pieces,
                            uint64_t where) = 0;
  // The receiver: the sender says that it has finished this batch, the first one expected and not
  // taken. INVALID_ARGUMENT when it is not.
  virtual absl::Status Take(uint64_t batch) = 0;

  // The next batch that has finished: at the sender its pieces are free, at the receiver it stands
  // where it was expected.
  virtual std::optional<uint64_t> TakeFinished() = 0;

  // Ends what is under way, without results. Nothing may follow but drained() and destruction.
  virtual void Abort() = 0;
  // After Abort: the GPU touches nothing of it any more.
  virtual bool drained() = 0;
};

// Begin to connect; the other side does the same with the same id.
absl::StatusOr<std::unique_ptr<HandoffChannel>> MakePairChannel(const ChannelOptions& options,
                                                                const ncclUniqueId& id,
                                                                ChannelEnd end);
// With `options.one_sided`. No batch is of more than `window_bytes`, which both sides agree on.
// FAILED_PRECONDITION, here or as its failure before it is connected: these two cannot have one.
absl::StatusOr<std::unique_ptr<HandoffChannel>> MakePutChannel(const ChannelOptions& options,
                                                               const ncclUniqueId& id,
                                                               ChannelEnd end, size_t window_bytes);
absl::StatusOr<std::unique_ptr<HandoffChannel>> MakeCopyChannel(const ChannelOptions& options);

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_NCCL_HANDOFF_CHANNEL_H_
