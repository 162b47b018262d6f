// A receive and a send of NCCL for each batch. It only ever gets transfers that both sides have
// begun: the receive is launched before the sender is told.

#include <utility>

#include "base/check.h"
#include "base/status_macros.h"
#include "transport/nccl/batch_stream.h"
#include "transport/nccl/handoff_channel.h"
#include "transport/nccl/nccl_status.h"

namespace baton::transport {
namespace {

class PairChannel final : public HandoffChannel {
 public:
  explicit PairChannel(const ChannelOptions& options)
      : options_(options), stream_(options.gpu, options.wake_fd) {}
  ~PairChannel() override { Abort(); }

  absl::Status Connect(const ncclUniqueId& id, ChannelEnd end);

  void Poll() override;
  absl::Status failure() const override { return failure_; }
  bool is_connected() const override { return state_ != State::kConnecting; }
  bool is_ready() const override { return state_ == State::kReady && failure_.ok(); }
  bool in_transition() const override {
    return state_ == State::kConnecting || state_ == State::kLaunching;
  }
  bool announces() const override { return false; }

  absl::StatusOr<std::optional<uint64_t>> Expect(uint64_t batch, std::span<std::byte> to,
                                                 std::span<const uint64_t> pieces) override;
  absl::Status Send(uint64_t batch, std::span<const ChannelPiece> pieces, uint64_t) override;
  absl::Status Take(uint64_t) override {
    return absl::InvalidArgumentError("the sender has announced a batch of a pair of calls");
  }
  std::optional<uint64_t> TakeFinished() override { return stream_.TakeFinished(); }
  void Abort() override;
  bool drained() override { return stream_.drained(); }

 private:
  static constexpr int kSender = 0, kReceiver = 1;  // ranks
  enum class State : uint8_t { kConnecting, kReady, kLaunching, kAborted };
  template <typename Call>
  absl::Status Launch(uint64_t batch, const Call& call);

  const ChannelOptions options_;
  BatchStream stream_;
  ncclComm_t comm_ = nullptr;  // null: aborted
  State state_ = State::kConnecting;
  absl::Status failure_;
  uint64_t launching_ = 0;  // in kLaunching: the batch
};

absl::Status PairChannel::Connect(const ncclUniqueId& id, ChannelEnd end) {
  BATON_RETURN_IF_ERROR(stream_.Create());
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  config.minCTAs = 1;
  config.maxCTAs = options_.max_ctas;
  const int rank = end == ChannelEnd::kSender ? kSender : kReceiver;
  return NcclStatus(ncclCommInitRankConfig(&comm_, 2, id, rank, &config), "ncclCommInitRankConfig");
}

void PairChannel::Poll() {
  if (state_ == State::kAborted || !failure_.ok()) return;
  if (in_transition() || stream_.is_busy()) {
    const absl::StatusOr<bool> is_done = NcclIsDone(comm_);
    failure_ = is_done.status();
    if (!failure_.ok()) return;
    if (*is_done && in_transition()) {
      const bool was_launching = std::exchange(state_, State::kReady) == State::kLaunching;
      if (was_launching) failure_ = stream_.MarkEnd(launching_);
      if (!failure_.ok()) return;
    }
  }
  failure_ = stream_.Poll();
}

absl::StatusOr<std::optional<uint64_t>> PairChannel::Expect(uint64_t batch, std::span<std::byte> to,
                                                            std::span<const uint64_t> pieces) {
  BATON_RETURN_IF_ERROR(Launch(batch, [&]() -> absl::Status {
    std::byte* at = to.data();
    for (const uint64_t bytes : pieces) {
      BATON_RETURN_IF_ERROR(
          NcclStatus(ncclRecv(at, bytes, ncclInt8, kSender, comm_, stream_.get()), "ncclRecv"));
      at += bytes;
    }
    return absl::OkStatus();
  }));
  return std::optional<uint64_t>(0);
}

absl::Status PairChannel::Send(uint64_t batch, std::span<const ChannelPiece> pieces, uint64_t) {
  return Launch(batch, [&]() -> absl::Status {
    for (const ChannelPiece& piece : pieces) {
      BATON_RETURN_IF_ERROR(
          NcclStatus(ncclSend(piece.data, piece.bytes, ncclInt8, kReceiver, comm_, stream_.get()),
                     "ncclSend"));
    }
    return absl::OkStatus();
  });
}

template <typename Call>
absl::Status PairChannel::Launch(uint64_t batch, const Call& call) {
  BATON_CHECK(is_ready());
  std::unique_lock<std::mutex> launches;
  if (options_.launches != nullptr) launches = std::unique_lock(*options_.launches);
  absl::Status status = NcclStatus(ncclGroupStart(), "ncclGroupStart");
  if (status.ok()) status = call();
  const ncclResult_t ended = ncclGroupEnd();
  if (status.ok()) status = NcclStatus(ended, "ncclGroupEnd");
  if (status.ok() && ended == ncclInProgress) {
    // NCCL goes on by itself; only then the stream has it all.
    state_ = State::kLaunching;
    launching_ = batch;
  } else if (status.ok()) {
    status = stream_.MarkEnd(batch);
  }
  if (!status.ok()) failure_ = status;
  return status;
}

void PairChannel::Abort() {
  if (std::exchange(state_, State::kAborted) == State::kAborted) return;
  // What stands in the stream ends by this.
  if (comm_ != nullptr) (void)ncclCommAbort(std::exchange(comm_, nullptr));
  stream_.End();
}

}  // namespace

absl::StatusOr<std::unique_ptr<HandoffChannel>> MakePairChannel(const ChannelOptions& options,
                                                                const ncclUniqueId& id,
                                                                ChannelEnd end) {
  auto channel = std::make_unique<PairChannel>(options);
  BATON_RETURN_IF_ERROR(channel->Connect(id, end));
  return channel;
}

}  // namespace baton::transport
