#include "transport/group/group_seat.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace baton::transport {

void GroupSeat::Take(std::unique_ptr<Collectives> group) {
  BATON_CHECK(group != nullptr && group->world_size() == world_size_ && group->rank() == rank_);
  std::function<void()> wakeup;
  std::shared_ptr<Collectives> before = std::move(group);
  Collectives* const taken = before.get();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    group_.swap(before);
    wakeup = wakeup_;
  }
  if (wakeup) taken->SetWakeup(std::move(wakeup));
  if (before != nullptr) before->MoveOn();
}

void GroupSeat::Leave() {
  std::shared_ptr<Collectives> left;
  std::lock_guard<std::mutex> lock(mutex_);
  group_.swap(left);
  // Goes without the lock: what it wakes may ask the seat.
}

absl::Status GroupSeat::AllReduceSum(std::span<std::byte> data, ReduceType type, Duration timeout) {
  const auto g = group();
  return g != nullptr ? g->AllReduceSum(data, type, timeout) : health();
}
absl::Status GroupSeat::AllGather(std::span<const std::byte> mine, std::span<std::byte> all,
                                  Duration timeout) {
  const auto g = group();
  return g != nullptr ? g->AllGather(mine, all, timeout) : health();
}
absl::Status GroupSeat::Broadcast(std::span<std::byte> data, int root, Duration timeout) {
  const auto g = group();
  return g != nullptr ? g->Broadcast(data, root, timeout) : health();
}
absl::Status GroupSeat::AllToAllV(std::span<const std::byte> send,
                                  std::span<const size_t> send_bytes, std::span<std::byte> recv,
                                  std::span<const size_t> recv_bytes, Duration timeout) {
  const auto g = group();
  return g != nullptr ? g->AllToAllV(send, send_bytes, recv, recv_bytes, timeout) : health();
}
absl::Status GroupSeat::Barrier(Duration timeout) {
  const auto g = group();
  return g != nullptr ? g->Barrier(timeout) : health();
}

DeviceCalls* GroupSeat::ForDevice() {
  const auto g = group();
  return g != nullptr && g->ForDevice() != nullptr ? &of_device_ : nullptr;
}

template <typename Call>
absl::Status GroupSeat::OfDevice::OnGroup(const Call& call) {
  const auto g = seat_.group();
  if (g == nullptr) return seat_.health();
  DeviceCalls* const calls = g->ForDevice();
  return calls != nullptr ? call(*calls) : absl::InternalError("the group has no GPUs");
}
absl::Status GroupSeat::OfDevice::AllReduceSum(std::span<std::byte> data, ReduceType type,
                                               Duration timeout) {
  return OnGroup([&](DeviceCalls& calls) { return calls.AllReduceSum(data, type, timeout); });
}
absl::Status GroupSeat::OfDevice::AllGather(std::span<const std::byte> mine,
                                            std::span<std::byte> all, Duration timeout) {
  return OnGroup([&](DeviceCalls& calls) { return calls.AllGather(mine, all, timeout); });
}
absl::Status GroupSeat::OfDevice::Broadcast(std::span<std::byte> data, int root, Duration timeout) {
  return OnGroup([&](DeviceCalls& calls) { return calls.Broadcast(data, root, timeout); });
}
absl::Status GroupSeat::OfDevice::AllToAllV(std::span<const std::byte> send,
                                            std::span<const size_t> send_bytes,
                                            std::span<std::byte> recv,
                                            std::span<const size_t> recv_bytes, Duration timeout) {
  return OnGroup([&](DeviceCalls& calls) {
    return calls.AllToAllV(send, send_bytes, recv, recv_bytes, timeout);
  });
}
absl::Status GroupSeat::OfDevice::Settle(Duration timeout) {
  return OnGroup([&](DeviceCalls& calls) { return calls.Settle(timeout); });
}
void GroupSeat::OfDevice::TrustSizes(bool trusted) {
  (void)OnGroup([&](DeviceCalls& calls) {
    calls.TrustSizes(trusted);
    return absl::OkStatus();
  });
}

bool GroupSeat::is_present(int rank) const {
  const auto g = group();
  return g != nullptr ? g->is_present(rank) : rank == rank_;
}
uint64_t GroupSeat::generation() const {
  const auto g = group();
  return g != nullptr ? g->generation() : 0;
}
absl::Status GroupSeat::health() const {
  const auto g = group();
  if (g != nullptr) return g->health();
  return absl::UnavailableError(absl::StrCat("rank ", rank_, " is in no group"));
}
std::vector<int> GroupSeat::lost_ranks() const {
  const auto g = group();
  return g != nullptr ? g->lost_ranks() : std::vector<int>();
}
std::vector<int> GroupSeat::gone_ranks() const {
  const auto g = group();
  return g != nullptr ? g->gone_ranks() : std::vector<int>();
}
void GroupSeat::MoveOn() {
  const auto g = group();
  if (g != nullptr) g->MoveOn();
}
void GroupSeat::Abort(const absl::Status& why) {
  const auto g = group();
  if (g != nullptr) g->Abort(why);
}
void GroupSeat::SetWakeup(std::function<void()> wakeup) {
  std::shared_ptr<Collectives> g;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    wakeup_ = wakeup;
    g = group_;
  }
  if (g != nullptr) g->SetWakeup(std::move(wakeup));
}
void GroupSeat::Ring() {
  const auto g = group();
  if (g != nullptr) g->Ring();
}
bool GroupSeat::PeerWaits() const {
  const auto g = group();
  return g != nullptr && g->PeerWaits();
}

}  // namespace baton::transport
