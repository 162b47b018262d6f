// Where an endpoint sends to itself. It has a channel for each direction: the sender's copies to
// where the receiver's expects the batch.

#include <deque>

#include "base/check.h"
#include "base/status_macros.h"
#include "transport/nccl/batch_stream.h"
#include "transport/nccl/handoff_channel.h"

namespace baton::transport {
namespace {

class CopyChannel final : public HandoffChannel {
 public:
  explicit CopyChannel(const ChannelOptions& options) : stream_(options.gpu, options.wake_fd) {}
  absl::Status Create() { return stream_.Create(); }

  void Poll() override {
    if (failure_.ok()) failure_ = stream_.Poll();
  }
  absl::Status failure() const override { return failure_; }
  bool is_connected() const override { return true; }
  bool is_ready() const override { return failure_.ok(); }
  bool in_transition() const override { return false; }
  bool announces() const override { return true; }

  absl::StatusOr<std::optional<uint64_t>> Expect(uint64_t batch, std::span<std::byte> to,
                                                 std::span<const uint64_t>) override {
    expected_.push_back(batch);
    return std::optional<uint64_t>(reinterpret_cast<uint64_t>(to.data()));
  }

  absl::Status Send(uint64_t batch, std::span<const ChannelPiece> pieces, uint64_t where) override {
    BATON_CHECK(is_ready());
    failure_ = stream_.Copy(pieces, reinterpret_cast<std::byte*>(where));
    if (!failure_.ok()) return failure_;
    return failure_ = stream_.MarkEnd(batch);
  }

  absl::Status Take(uint64_t batch) override {
    if (expected_.empty() || expected_.front() != batch) {
      return absl::InvalidArgumentError("a batch was copied that is not under way");
    }
    expected_.pop_front();
    taken_.push_back(batch);
    return absl::OkStatus();
  }

  std::optional<uint64_t> TakeFinished() override {
    if (taken_.empty()) return stream_.TakeFinished();
    const uint64_t batch = taken_.front();
    taken_.pop_front();
    return batch;
  }
  void Abort() override { stream_.End(); }
  bool drained() override { return stream_.drained(); }

 private:
  BatchStream stream_;
  absl::Status failure_;
  std::deque<uint64_t> expected_, taken_;  // of a receiver
};

}  // namespace

absl::StatusOr<std::unique_ptr<HandoffChannel>> MakeCopyChannel(const ChannelOptions& options) {
  auto channel = std::make_unique<CopyChannel>(options);
  BATON_RETURN_IF_ERROR(channel->Create());
  return channel;
}

}  // namespace baton::transport
