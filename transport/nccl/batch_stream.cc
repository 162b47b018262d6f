#include "transport/nccl/batch_stream.h"

#include <unistd.h>

#include <utility>

#include "base/status_macros.h"
#include "transport/nccl/cuda_buffers.h"

namespace baton::transport {
namespace {

// Called on a thread of the driver's, behind a batch.
void Wake(void* fd) {
  const uint64_t one = 1;
  // Fails only when the counter is full, and then the thread is awake anyway.
  [[maybe_unused]] const ssize_t written =
      write(static_cast<int>(reinterpret_cast<intptr_t>(fd)), &one, sizeof(one));
}

}  // namespace

absl::Status BatchStream::Create() {
  BATON_RETURN_IF_ERROR(RuntimeStatus(cudaSetDevice(gpu_), "cudaSetDevice"));
  return RuntimeStatus(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
                       "a stream for hand-offs");
}

BatchStream::~BatchStream() {
  End();
  if (!drained()) return;
  for (const Batch& batch : under_way_) (void)cudaEventDestroy(batch.done);
  if (end_ != nullptr) (void)cudaEventDestroy(end_);
  if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
}

absl::Status BatchStream::Mark(cudaEvent_t* event) {
  BATON_RETURN_IF_ERROR(
      RuntimeStatus(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "an event"));
  return RuntimeStatus(cudaEventRecord(*event, stream_), "an event");
}

absl::Status BatchStream::Copy(std::span<const ChannelPiece> pieces, std::byte* to) {
  for (const ChannelPiece& piece : pieces) {
    BATON_RETURN_IF_ERROR(
        RuntimeStatus(cudaMemcpyAsync(to, piece.data, piece.bytes, cudaMemcpyDefault, stream_),
                      "a copy of a hand-off"));
    to += piece.bytes;
  }
  return absl::OkStatus();
}

absl::Status BatchStream::MarkEnd(uint64_t batch) {
  under_way_.push_back({.number = batch});
  BATON_RETURN_IF_ERROR(Mark(&under_way_.back().done));
  if (wake_fd_ < 0) return absl::OkStatus();
  return RuntimeStatus(
      cudaLaunchHostFunc(stream_, &Wake, reinterpret_cast<void*>(static_cast<intptr_t>(wake_fd_))),
      "cudaLaunchHostFunc");
}

absl::Status BatchStream::Poll() {
  while (!under_way_.empty()) {
    const cudaError_t done = cudaEventQuery(under_way_.front().done);
    if (done == cudaErrorNotReady) return absl::OkStatus();
    BATON_RETURN_IF_ERROR(RuntimeStatus(done, "a hand-off on the GPU"));
    finished_.push_back(under_way_.front().number);
    (void)cudaEventDestroy(under_way_.front().done);
    under_way_.pop_front();
  }
  return absl::OkStatus();
}

std::optional<uint64_t> BatchStream::TakeFinished() {
  if (finished_.empty()) return std::nullopt;
  const uint64_t batch = finished_.front();
  finished_.pop_front();
  return batch;
}

void BatchStream::End() {
  if (std::exchange(has_ended_, true)) return;
  if (stream_ != nullptr && !Mark(&end_).ok()) end_ = nullptr;
}

bool BatchStream::drained() const {
  // A GPU that answers with an error touches nothing any more.
  return end_ == nullptr || cudaEventQuery(end_) != cudaErrorNotReady;
}

}  // namespace baton::transport
