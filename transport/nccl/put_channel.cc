// A communicator with a window of memory: the receiver's part takes what is put, the sender's is
// where it is put from, at the same place of both. Only between GPUs that reach each other, where a
// put is copies to the peer's memory on the sender's stream, and waits for nobody.
//
// NCCL's wait for a signal has no other end than the signal. So none is launched before the sender
// has said that its stream is behind the put: the signal is there then, and no stream ever stands.
//
// The window belongs to this channel alone, and its memory goes when both sides have let it go: a
// peer that was given up and goes on later writes to what nobody reads. A communicator ends when
// its stream has, for that unmaps what a copy may be writing to.

#include <deque>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "transport/block_ring.h"
#include "transport/nccl/batch_stream.h"
#include "transport/nccl/handoff_channel.h"
#include "transport/nccl/nccl_status.h"
#include "transport/nccl/window_memory.h"

namespace baton::transport {
namespace {

class PutChannel final : public HandoffChannel {
 public:
  PutChannel(const ChannelOptions& options, ChannelEnd end, size_t window_bytes)
      : options_(options),
        calls_(*options.one_sided),
        peer_(end == ChannelEnd::kSender ? kReceiver : kSender),
        stream_(options.gpu, options.wake_fd),
        memory_(calls_, options.gpu, window_bytes),
        room_(window_bytes) {}
  ~PutChannel() override;

  absl::Status Connect(const ncclUniqueId& id);

  void Poll() override;
  absl::Status failure() const override { return failure_; }
  bool is_connected() const override {
    return state_ == State::kReady || state_ == State::kLaunching || state_ == State::kAborted;
  }
  // What a receiver expects it launches later.
  bool is_ready() const override {
    const bool is_free = state_ == State::kReady || (state_ == State::kLaunching && is_receiver());
    return is_free && failure_.ok();
  }
  bool in_transition() const override {
    return !is_connected() || state_ == State::kLaunching || !to_take_.empty();
  }
  bool announces() const override { return true; }

  absl::StatusOr<std::optional<uint64_t>> Expect(uint64_t batch, std::span<std::byte> to,
                                                 std::span<const uint64_t> pieces) override;
  absl::Status Send(uint64_t batch, std::span<const ChannelPiece> pieces, uint64_t where) override;
  absl::Status Take(uint64_t batch) override;
  std::optional<uint64_t> TakeFinished() override;
  void Abort() override;
  bool drained() override;

 private:
  static constexpr int kSender = 0, kReceiver = 1;  // ranks
  enum class State : uint8_t {
    kConnecting,
    kAllocating,
    kRegistering,  // the window
    kMeeting,      // in the first signals of both sides
    kReady,
    kLaunching,
    kAborted
  };
  struct Landing {
    uint64_t batch = 0;
    size_t at = 0;  // in the window
    std::span<std::byte> to;
  };

  bool is_receiver() const { return peer_ == kSender; }
  std::byte* window_at(size_t at) const { return memory_.data() + at; }
  // What follows when NCCL is through with what the state says.
  absl::Status Advance();
  absl::Status Register();
  absl::Status Meet();
  absl::Status LaunchWait();
  // After a call that puts something on the stream.
  absl::Status Launched(ncclResult_t result, const char* what);
  absl::Status FinishLaunch();

  const ChannelOptions options_;
  const OneSidedCalls calls_;
  const int peer_;
  BatchStream stream_;
  ncclComm_t comm_ = nullptr;
  WindowMemory memory_;  // this side's part of the window
  ncclWindow_t window_ = nullptr;
  State state_ = State::kConnecting;
  absl::Status failure_;
  uint64_t sending_ = 0;  // of a sender, in kLaunching: the batch

  // Of a receiver.
  BlockRing room_;
  std::deque<Landing> expected_;  // granted
  std::deque<Landing> to_take_;   // announced; in kLaunching a wait for the first one is launched
  bool has_taken_ = false;
};

absl::Status PutChannel::Connect(const ncclUniqueId& id) {
  BATON_RETURN_IF_ERROR(stream_.Create());
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  const int rank = is_receiver() ? kReceiver : kSender;
  return NcclStatus(ncclCommInitRankConfig(&comm_, 2, id, rank, &config), "ncclCommInitRankConfig");
}

PutChannel::~PutChannel() {
  Abort();
  (void)drained();
}

// --- progress

void PutChannel::Poll() {
  if (state_ == State::kAborted || !failure_.ok()) return;
  if (in_transition() || stream_.is_busy()) {
    const absl::StatusOr<bool> is_done = NcclIsDone(comm_);
    failure_ = is_done.status();
    if (failure_.ok() && *is_done) failure_ = Advance();
    if (!failure_.ok()) return;
  }
  failure_ = stream_.Poll();
}

absl::Status PutChannel::Advance() {
  switch (state_) {
    case State::kConnecting:
      state_ = State::kAllocating;
      memory_.Allocate();
      return absl::OkStatus();
    case State::kAllocating:
      return memory_.is_busy() ? absl::OkStatus() : Register();
    case State::kRegistering:
      return Meet();
    case State::kMeeting:
      state_ = State::kReady;
      return absl::OkStatus();
    case State::kReady:
      return to_take_.empty() ? absl::OkStatus() : LaunchWait();
    case State::kLaunching:
      BATON_RETURN_IF_ERROR(FinishLaunch());
      return to_take_.empty() ? absl::OkStatus() : LaunchWait();
    case State::kAborted:
      break;
  }
  return absl::OkStatus();
}

absl::Status PutChannel::Register() {
  constexpr int kSymmetric = 1;  // NCCL_WIN_COLL_SYMMETRIC
  BATON_RETURN_IF_ERROR(memory_.status());
  state_ = State::kRegistering;
  return NcclStatus(
      calls_.window_register(comm_, memory_.data(), memory_.bytes(), &window_, kSymmetric),
      "ncclCommWindowRegister");
}

// The first signal of each side waits for that of the other, so that has to be behind them before
// a put. It counts as one.
absl::Status PutChannel::Meet() {
  void* theirs = nullptr;
  if (window_ != nullptr) {
    BATON_RETURN_IF_ERROR(
        NcclStatus(calls_.peer_pointer(window_, 0, peer_, &theirs), "ncclGetPeerDevicePointer"));
  }
  if (theirs == nullptr) {
    return absl::FailedPreconditionError(window_ == nullptr
                                             ? "NCCL makes no windows between these GPUs"
                                             : "this GPU does not reach the peer's memory");
  }
  state_ = State::kMeeting;
  return NcclStatus(calls_.signal(peer_, 0, 0, 0, comm_, stream_.get()), "ncclSignal");
}

absl::Status PutChannel::Launched(ncclResult_t result, const char* what) {
  BATON_RETURN_IF_ERROR(NcclStatus(result, what));
  state_ = State::kLaunching;
  // NCCL may go on by itself; only then the stream has it all.
  return result == ncclInProgress ? absl::OkStatus() : FinishLaunch();
}

absl::Status PutChannel::FinishLaunch() {
  state_ = State::kReady;
  if (!is_receiver()) return stream_.MarkEnd(sending_);
  const Landing landing = to_take_.front();
  to_take_.pop_front();
  const ChannelPiece piece{window_at(landing.at), landing.to.size()};
  BATON_RETURN_IF_ERROR(stream_.Copy({&piece, 1}, landing.to.data()));
  return stream_.MarkEnd(landing.batch);
}

// --- batches

absl::Status PutChannel::Send(uint64_t batch, std::span<const ChannelPiece> pieces,
                              uint64_t where) {
  BATON_CHECK(is_ready() && !is_receiver());
  size_t bytes = 0;
  for (const ChannelPiece& piece : pieces) bytes += piece.bytes;
  if (where > room_.bytes() || bytes > room_.bytes() - where) {
    return failure_ =
               absl::InvalidArgumentError(absl::StrCat("the peer wants ", bytes, " bytes at byte ",
                                                       where, " of a window of ", room_.bytes()));
  }
  std::unique_lock<std::mutex> launches;
  if (options_.launches != nullptr) launches = std::unique_lock(*options_.launches);
  // A put has to begin in a window, too. What was there before has left it: the receiver grants a
  // place anew when it has taken what was put there.
  failure_ = stream_.Copy(pieces, window_at(where));
  if (!failure_.ok()) return failure_;
  sending_ = batch;
  const ncclResult_t result = calls_.put_signal(window_at(where), bytes, ncclInt8, peer_, window_,
                                                where, 0, 0, 0, comm_, stream_.get());
  return failure_ = Launched(result, "ncclPutSignal");
}

absl::StatusOr<std::optional<uint64_t>> PutChannel::Expect(uint64_t batch, std::span<std::byte> to,
                                                           std::span<const uint64_t>) {
  BATON_CHECK(is_ready() && is_receiver());
  if (to.size() > room_.bytes()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a batch of ", to.size(), " bytes was offered; the window is of ", room_.bytes()));
  }
  const std::optional<size_t> at = room_.Take(to.size(), batch);
  if (!at.has_value()) return std::optional<uint64_t>();
  expected_.push_back({batch, *at, to});
  return std::optional<uint64_t>(*at);
}

absl::Status PutChannel::Take(uint64_t batch) {
  if (expected_.empty() || expected_.front().batch != batch) {
    return absl::InvalidArgumentError("a batch was put that is not under way");
  }
  to_take_.push_back(expected_.front());
  expected_.pop_front();
  return absl::OkStatus();
}

absl::Status PutChannel::LaunchWait() {
  // Of the batch; and, the first time, the one that both sides have met with.
  NcclSignalCount count{.signals = std::exchange(has_taken_, true) ? 1 : 2, .peer = peer_};
  std::unique_lock<std::mutex> launches;
  if (options_.launches != nullptr) launches = std::unique_lock(*options_.launches);
  return Launched(calls_.wait_signal(1, &count, comm_, stream_.get()), "ncclWaitSignal");
}

std::optional<uint64_t> PutChannel::TakeFinished() {
  const std::optional<uint64_t> batch = stream_.TakeFinished();
  if (batch.has_value() && is_receiver()) room_.GiveBack(*batch);
  return batch;
}

// --- ends

void PutChannel::Abort() {
  if (state_ == State::kAborted) return;
  // Only what both sides do together may take for ever.
  const bool is_meeting = !is_connected();
  state_ = State::kAborted;
  if (is_meeting && comm_ != nullptr) (void)ncclCommAbort(std::exchange(comm_, nullptr));
}

bool PutChannel::drained() {
  if (state_ != State::kAborted || memory_.is_busy()) return false;
  if (comm_ != nullptr) {
    ncclResult_t result = ncclSuccess;
    (void)ncclCommGetAsyncError(comm_, &result);
    if (result == ncclInProgress) return false;  // something is on its way to the stream
  }
  stream_.End();
  if (!stream_.drained()) return false;
  if (comm_ != nullptr) (void)ncclCommAbort(std::exchange(comm_, nullptr));
  if (memory_.data() == nullptr) return true;
  memory_.Free();
  return false;
}

}  // namespace

absl::StatusOr<std::unique_ptr<HandoffChannel>> MakePutChannel(const ChannelOptions& options,
                                                               const ncclUniqueId& id,
                                                               ChannelEnd end,
                                                               size_t window_bytes) {
  auto channel = std::make_unique<PutChannel>(options, end, window_bytes);
  BATON_RETURN_IF_ERROR(channel->Connect(id));
  return channel;
}

}  // namespace baton::transport
