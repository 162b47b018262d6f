#ifndef BATON_TRANSPORT_GROUP_GROUP_SEAT_H_
#define BATON_TRANSPORT_GROUP_GROUP_SEAT_H_

// A rank's place in its group, from one generation to the next: Collectives that outlive those that
// a Rendezvous makes. What computes with the group keeps a pointer to the seat; who forms the group
// anew changes what stands behind it, on the loop's thread and between calls.
//
// Take and Leave may run beside what any thread may call of Collectives.
//
// Without a group every call fails with UNAVAILABLE, nobody waits and nobody is present but this
// rank.

#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "transport/collectives.h"

namespace baton::transport {

class GroupSeat final : public Collectives {
 public:
  // 0 <= rank < world_size, as in every group that will be taken.
  GroupSeat(int world_size, int rank) : world_size_(world_size), rank_(rank) {}

  // From here on the calls are the group's. Where this rank was in another, it has moved on.
  // Loop's thread.
  void Take(std::unique_ptr<Collectives> group);
  // Leaves the group, if there is one: for the others this rank is gone. Loop's thread.
  void Leave();
  bool taken() const { return group() != nullptr; }

  // Of the group that is taken at a call.
  DeviceCalls* ForDevice() override;
  int world_size() const override { return world_size_; }
  int rank() const override { return rank_; }
  absl::Status AllReduceSum(std::span<std::byte> data, ReduceType type, Duration timeout) override;
  absl::Status AllGather(std::span<const std::byte> mine, std::span<std::byte> all,
                         Duration timeout) override;
  absl::Status Broadcast(std::span<std::byte> data, int root, Duration timeout) override;
  absl::Status AllToAllV(std::span<const std::byte> send, std::span<const size_t> send_bytes,
                         std::span<std::byte> recv, std::span<const size_t> recv_bytes,
                         Duration timeout) override;
  absl::Status Barrier(Duration timeout) override;
  bool is_present(int rank) const override;
  uint64_t generation() const override;
  absl::Status health() const override;
  std::vector<int> lost_ranks() const override;
  std::vector<int> gone_ranks() const override;
  void MoveOn() override;
  void Abort(const absl::Status& why) override;
  void SetWakeup(std::function<void()> wakeup) override;
  void Ring() override;
  bool PeerWaits() const override;

 private:
  class OfDevice final : public DeviceCalls {
   public:
    explicit OfDevice(GroupSeat& seat) : seat_(seat) {}
    absl::Status AllReduceSum(std::span<std::byte> data, ReduceType type,
                              Duration timeout) override;
    absl::Status AllGather(std::span<const std::byte> mine, std::span<std::byte> all,
                           Duration timeout) override;
    absl::Status Broadcast(std::span<std::byte> data, int root, Duration timeout) override;
    absl::Status AllToAllV(std::span<const std::byte> send, std::span<const size_t> send_bytes,
                           std::span<std::byte> recv, std::span<const size_t> recv_bytes,
                           Duration timeout) override;
    absl::Status Settle(Duration timeout) override;
    void TrustSizes(bool trusted) override;

   private:
    // Runs `call` on the group's calls for the device, if there are any.
    template <typename Call>
    absl::Status OnGroup(const Call& call);

    GroupSeat& seat_;
  };

  std::shared_ptr<Collectives> group() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return group_;
  }

  const int world_size_;
  const int rank_;
  OfDevice of_device_{*this};
  mutable std::mutex mutex_;
  std::function<void()> wakeup_;        // guarded by mutex_
  std::shared_ptr<Collectives> group_;  // guarded by mutex_; null: none
};

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_GROUP_GROUP_SEAT_H_
