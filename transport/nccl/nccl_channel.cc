#include "transport/nccl/nccl_channel.h"

#include <unistd.h>

#include <utility>

#include "base/check.h"
#include "base/status_macros.h"
#include "transport/nccl/cuda_buffers.h"
#include "transport/nccl/nccl_status.h"

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

absl::Status NcclChannel::CreateStream() {
  BATON_RETURN_IF_ERROR(RuntimeStatus(cudaSetDevice(options_.gpu), "cudaSetDevice"));
  return RuntimeStatus(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
                       "a stream for hand-offs");
}

absl::StatusOr<std::unique_ptr<NcclChannel>> NcclChannel::ForCopies(const ChannelOptions& options) {
  std::unique_ptr<NcclChannel> channel(new NcclChannel(options));
  BATON_RETURN_IF_ERROR(channel->CreateStream());
  return channel;
}

absl::StatusOr<std::unique_ptr<NcclChannel>> NcclChannel::Connect(const ChannelOptions& options,
                                                                  const ncclUniqueId& id,
                                                                  int rank) {
  std::unique_ptr<NcclChannel> channel(new NcclChannel(options));
  BATON_RETURN_IF_ERROR(channel->CreateStream());
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  config.minCTAs = 1;
  config.maxCTAs = options.max_ctas;
  channel->state_ = State::kConnecting;
  const absl::Status begun = NcclStatus(
      ncclCommInitRankConfig(&channel->comm_, 2, id, rank, &config), "ncclCommInitRankConfig");
  if (begun.ok()) return channel;
  channel->Abort();
  return begun;
}

NcclChannel::~NcclChannel() {
  Abort();
  if (!drained()) return;
  for (const Batch& batch : under_way_) (void)cudaEventDestroy(batch.done);
  if (end_ != nullptr) (void)cudaEventDestroy(end_);
  if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
}

void NcclChannel::Poll() {
  if (state_ == State::kAborted || !failure_.ok()) return;
  if (comm_ != nullptr && (in_transition() || !under_way_.empty())) {
    ncclResult_t result = ncclSuccess;
    failure_ = NcclStatus(ncclCommGetAsyncError(comm_, &result), "ncclCommGetAsyncError");
    if (failure_.ok()) failure_ = NcclStatus(result, "NCCL");
    if (!failure_.ok()) return;
    if (result == ncclSuccess && in_transition()) {
      const bool was_launching = std::exchange(state_, State::kReady) == State::kLaunching;
      if (was_launching) failure_ = MarkEnd(launching_);
      if (!failure_.ok()) return;
    }
  }
  while (!under_way_.empty()) {
    const cudaError_t done = cudaEventQuery(under_way_.front().done);
    if (done == cudaErrorNotReady) return;
    failure_ = RuntimeStatus(done, "a hand-off on the GPU");
    if (!failure_.ok()) return;
    finished_.push_back(under_way_.front().number);
    (void)cudaEventDestroy(under_way_.front().done);
    under_way_.pop_front();
  }
}

absl::Status NcclChannel::Send(uint64_t batch, std::span<const ChannelPiece> pieces) {
  return Launch(batch, pieces, /*is_send=*/true);
}

absl::Status NcclChannel::Receive(uint64_t batch, std::span<const ChannelPiece> pieces) {
  return Launch(batch, pieces, /*is_send=*/false);
}

absl::Status NcclChannel::Launch(uint64_t batch, std::span<const ChannelPiece> pieces,
                                 bool is_send) {
  BATON_CHECK(is_ready() && comm_ != nullptr);
  std::unique_lock<std::mutex> launches;
  if (options_.launches != nullptr) launches = std::unique_lock(*options_.launches);
  absl::Status status = NcclStatus(ncclGroupStart(), "ncclGroupStart");
  for (const ChannelPiece& piece : pieces) {
    if (!status.ok()) break;
    status =
        is_send ? NcclStatus(ncclSend(piece.data, piece.bytes, ncclInt8, kReceiver, comm_, stream_),
                             "ncclSend")
                : NcclStatus(ncclRecv(piece.data, piece.bytes, ncclInt8, kSender, comm_, stream_),
                             "ncclRecv");
  }
  const ncclResult_t ended = ncclGroupEnd();
  if (status.ok()) status = NcclStatus(ended, "ncclGroupEnd");
  if (status.ok() && ended == ncclInProgress) {
    // NCCL goes on by itself; only then the stream has it all.
    state_ = State::kLaunching;
    launching_ = batch;
  } else if (status.ok()) {
    status = MarkEnd(batch);
  }
  if (!status.ok()) failure_ = status;
  return status;
}

absl::Status NcclChannel::Copy(uint64_t batch, std::byte* to, std::span<const ChannelPiece> from) {
  BATON_CHECK(is_ready() && comm_ == nullptr);
  for (const ChannelPiece& piece : from) {
    failure_ =
        RuntimeStatus(cudaMemcpyAsync(to, piece.data, piece.bytes, cudaMemcpyDefault, stream_),
                      "a copy of a hand-off");
    if (!failure_.ok()) return failure_;
    to += piece.bytes;
  }
  failure_ = MarkEnd(batch);
  return failure_;
}

absl::Status NcclChannel::Mark(cudaEvent_t* event) {
  BATON_RETURN_IF_ERROR(
      RuntimeStatus(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "an event"));
  return RuntimeStatus(cudaEventRecord(*event, stream_), "an event");
}

absl::Status NcclChannel::MarkEnd(uint64_t batch) {
  under_way_.push_back({.number = batch});
  BATON_RETURN_IF_ERROR(Mark(&under_way_.back().done));
  return RuntimeStatus(
      cudaLaunchHostFunc(stream_, &Wake,
                         reinterpret_cast<void*>(static_cast<intptr_t>(options_.wake_fd))),
      "cudaLaunchHostFunc");
}

std::optional<uint64_t> NcclChannel::TakeFinished() {
  if (finished_.empty()) return std::nullopt;
  const uint64_t batch = finished_.front();
  finished_.pop_front();
  return batch;
}

void NcclChannel::Abort() {
  if (std::exchange(state_, State::kAborted) == State::kAborted) return;
  if (comm_ != nullptr) (void)ncclCommAbort(std::exchange(comm_, nullptr));
  if (stream_ != nullptr && !Mark(&end_).ok()) end_ = nullptr;
}

bool NcclChannel::drained() {
  // A GPU that answers with an error touches nothing any more.
  return end_ == nullptr || cudaEventQuery(end_) != cudaErrorNotReady;
}

}  // namespace baton::transport
