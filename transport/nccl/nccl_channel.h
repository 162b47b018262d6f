#ifndef BATON_TRANSPORT_NCCL_NCCL_CHANNEL_H_
#define BATON_TRANSPORT_NCCL_NCCL_CHANNEL_H_

// What moves the bytes of one direction between two endpoints: a communicator of two ranks and a
// stream of its own; or, where an endpoint sends to itself, the stream alone, for copies. Batches
// run in the order of their calls. Nothing waits: Poll looks at what has become of them.
//
// The endpoint's thread makes all calls.

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

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
  std::shared_ptr<std::mutex> launches;  // may be null
};

class NcclChannel {
 public:
  static constexpr int kSender = 0, kReceiver = 1;  // ranks
  // Begins to connect; the other side does the same with the same id.
  static absl::StatusOr<std::unique_ptr<NcclChannel>> Connect(const ChannelOptions& options,
                                                              const ncclUniqueId& id, int rank);
  static absl::StatusOr<std::unique_ptr<NcclChannel>> ForCopies(const ChannelOptions& options);
  // Once drained() everything is freed; before, the stream is left to the process's end.
  ~NcclChannel();
  NcclChannel(const NcclChannel&) = delete;
  NcclChannel& operator=(const NcclChannel&) = delete;

  // Progress, and failures.
  void Poll();
  absl::Status failure() const { return failure_; }
  bool is_connected() const { return state_ != State::kConnecting; }
  // Takes a batch now.
  bool is_ready() const { return state_ == State::kReady && failure_.ok(); }
  // NCCL is at something of which nobody tells when it is done: Poll again soon.
  bool in_transition() const { return state_ == State::kConnecting || state_ == State::kLaunching; }

  // is_ready() only. The pieces stay untouched until the batch is done, or the channel drained.
  absl::Status Send(uint64_t batch, std::span<const ChannelPiece> pieces);
  absl::Status Receive(uint64_t batch, std::span<const ChannelPiece> pieces);
  // `from` has the sizes of `to`, in the same order; for a channel of copies.
  absl::Status Copy(uint64_t batch, std::byte* to, std::span<const ChannelPiece> from);
  // The next batch that is done.
  std::optional<uint64_t> TakeFinished();

  // Ends what is under way, without results. Nothing may follow but drained() and destruction.
  void Abort();
  // After Abort: the GPU touches nothing of it any more.
  bool drained();

 private:
  enum class State : uint8_t { kConnecting, kReady, kLaunching, kAborted };
  struct Batch {
    uint64_t number = 0;
    cudaEvent_t done = nullptr;
  };

  explicit NcclChannel(const ChannelOptions& options) : options_(options) {}
  absl::Status CreateStream();
  absl::Status Launch(uint64_t batch, std::span<const ChannelPiece> pieces, bool is_send);
  // Everything of the batch is on the stream.
  absl::Status MarkEnd(uint64_t batch);
  absl::Status Mark(cudaEvent_t* event);

  const ChannelOptions options_;
  ncclComm_t comm_ = nullptr;  // null: copies, or aborted
  cudaStream_t stream_ = nullptr;
  State state_ = State::kReady;
  absl::Status failure_;
  uint64_t launching_ = 0;  // in kLaunching: the batch
  std::deque<Batch> under_way_;
  std::deque<uint64_t> finished_;
  cudaEvent_t end_ = nullptr;  // of an aborted channel's stream
};

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_NCCL_NCCL_CHANNEL_H_
