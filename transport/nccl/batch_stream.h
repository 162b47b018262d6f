#ifndef BATON_TRANSPORT_NCCL_BATCH_STREAM_H_
#define BATON_TRANSPORT_NCCL_BATCH_STREAM_H_

// A stream of a GPU that batches run on, and which of them it is done with. One thread makes all
// calls.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>

#include "absl/status/status.h"
#include "transport/nccl/handoff_channel.h"

namespace baton::transport {

class BatchStream {
 public:
  // `wake_fd` is written to behind each batch; -1: nobody is woken.
  BatchStream(int gpu, int wake_fd) : gpu_(gpu), wake_fd_(wake_fd) {}
  // Once drained(); before, the stream is left to the process's end.
  ~BatchStream();
  BatchStream(const BatchStream&) = delete;
  BatchStream& operator=(const BatchStream&) = delete;

  // Before everything else.
  absl::Status Create();
  cudaStream_t get() const { return stream_; }

  // Copies the pieces to `to`, one behind the other.
  absl::Status Copy(std::span<const ChannelPiece> pieces, std::byte* to);
  // Everything of the batch is on the stream.
  absl::Status MarkEnd(uint64_t batch);
  bool is_busy() const { return !under_way_.empty(); }
  absl::Status Poll();
  // The next batch that Poll has found done.
  std::optional<uint64_t> TakeFinished();

  // Nothing is going to follow what is on the stream now.
  void End();
  // After End: the stream is through with it.
  bool drained() const;

 private:
  struct Batch {
    uint64_t number = 0;
    cudaEvent_t done = nullptr;
  };
  absl::Status Mark(cudaEvent_t* event);

  const int gpu_, wake_fd_;
  cudaStream_t stream_ = nullptr;
  std::deque<Batch> under_way_;
  std::deque<uint64_t> finished_;
  bool has_ended_ = false;
  cudaEvent_t end_ = nullptr;
};

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_NCCL_BATCH_STREAM_H_
