#include <cstring>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "transport/collectives.h"

namespace baton::transport {
namespace {

absl::Status CheckSizes(const char* what, size_t from_bytes, size_t to_bytes) {
  if (from_bytes == to_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      what, ": ", from_bytes, " bytes go into a buffer of ", to_bytes, "; the sizes must agree"));
}

void Copy(std::span<const std::byte> from, std::span<std::byte> to) {
  if (!from.empty()) std::memcpy(to.data(), from.data(), from.size());
}

class SoloCollectives final : public Collectives {
 public:
  int world_size() const override { return 1; }
  int rank() const override { return 0; }

  // A sum of one term is that term: no rounding.
  absl::Status AllReduceSum(std::span<std::byte> data, ReduceType type, Duration) override {
    BATON_RETURN_IF_ERROR(health());
    const size_t element_bytes = type == ReduceType::kF32 ? 4 : 2;
    if (data.size() % element_bytes == 0) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("AllReduceSum: ", data.size(),
                                                   " bytes are no whole number of elements of ",
                                                   element_bytes, " bytes"));
  }

  absl::Status AllGather(std::span<const std::byte> mine, std::span<std::byte> all,
                         Duration) override {
    BATON_RETURN_IF_ERROR(health());
    BATON_RETURN_IF_ERROR(CheckSizes("AllGather", mine.size(), all.size()));
    Copy(mine, all);
    return absl::OkStatus();
  }

  absl::Status Broadcast(std::span<std::byte>, int root, Duration) override {
    BATON_RETURN_IF_ERROR(health());
    if (root == 0) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("Broadcast: root is ", root, " in a group of 1 rank; it must be 0"));
  }

  absl::Status AllToAllV(std::span<const std::byte> send, std::span<const size_t> send_bytes,
                         std::span<std::byte> recv, std::span<const size_t> recv_bytes,
                         Duration) override {
    BATON_RETURN_IF_ERROR(health());
    if (send_bytes.size() != 1 || recv_bytes.size() != 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("AllToAllV: ", send_bytes.size(), " send sizes and ", recv_bytes.size(),
                       " receive sizes in a group of 1 rank; there must be one each"));
    }
    BATON_RETURN_IF_ERROR(CheckSizes("AllToAllV: send_bytes", send_bytes[0], send.size()));
    BATON_RETURN_IF_ERROR(CheckSizes("AllToAllV: recv_bytes", recv_bytes[0], recv.size()));
    BATON_RETURN_IF_ERROR(CheckSizes("AllToAllV", send.size(), recv.size()));
    Copy(send, recv);
    return absl::OkStatus();
  }

  absl::Status Barrier(Duration) override { return health(); }

  bool is_present(int) const override { return true; }
  uint64_t generation() const override { return 1; }
  absl::Status health() const override {
    std::lock_guard<std::mutex> lock(mutex_);
    return failure_;
  }
  std::vector<int> lost_ranks() const override { return {}; }
  std::vector<int> gone_ranks() const override { return {}; }
  void MoveOn() override {}

  void Abort(const absl::Status& why) override {
    std::function<void()> wakeup;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!failure_.ok()) return;
      failure_ = why;
      wakeup = wakeup_;
    }
    if (wakeup) wakeup();
  }

  void SetWakeup(std::function<void()> wakeup) override {
    std::lock_guard<std::mutex> lock(mutex_);
    wakeup_ = std::move(wakeup);
  }
  void Ring() override {}
  bool PeerWaits() const override { return false; }

 private:
  mutable std::mutex mutex_;
  absl::Status failure_;          // guarded by mutex_
  std::function<void()> wakeup_;  // guarded by mutex_
};

}  // namespace

std::unique_ptr<Collectives> MakeSoloCollectives() { return std::make_unique<SoloCollectives>(); }

}  // namespace baton::transport
