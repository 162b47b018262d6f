#include "transport/group/group_seat.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace baton::transport {

void GroupSeat::Take(std::unique_ptr<Collectives> group) {
  BATON_CHECK(group != nullptr && group->world_size() == world_size_ && group->rank() == rank_);
  group_ = std::move(group);
  if (wakeup_) group_->SetWakeup(wakeup_);
}

absl::Status GroupSeat::AllReduceSum(std::span<std::byte> data, ReduceType type, Duration timeout) {
  return taken() ? group_->AllReduceSum(data, type, timeout) : health();
}
absl::Status GroupSeat::AllGather(std::span<const std::byte> mine, std::span<std::byte> all,
                                  Duration timeout) {
  return taken() ? group_->AllGather(mine, all, timeout) : health();
}
absl::Status GroupSeat::Broadcast(std::span<std::byte> data, int root, Duration timeout) {
  return taken() ? group_->Broadcast(data, root, timeout) : health();
}
absl::Status GroupSeat::AllToAllV(std::span<const std::byte> send,
                                  std::span<const size_t> send_bytes, std::span<std::byte> recv,
                                  std::span<const size_t> recv_bytes, Duration timeout) {
  return taken() ? group_->AllToAllV(send, send_bytes, recv, recv_bytes, timeout) : health();
}
absl::Status GroupSeat::Barrier(Duration timeout) {
  return taken() ? group_->Barrier(timeout) : health();
}

bool GroupSeat::is_present(int rank) const {
  return taken() ? group_->is_present(rank) : rank == rank_;
}
uint64_t GroupSeat::generation() const { return taken() ? group_->generation() : 0; }
absl::Status GroupSeat::health() const {
  if (taken()) return group_->health();
  return absl::UnavailableError(absl::StrCat("rank ", rank_, " is in no group"));
}
std::vector<int> GroupSeat::lost_ranks() const {
  return taken() ? group_->lost_ranks() : std::vector<int>();
}
void GroupSeat::Abort(const absl::Status& why) {
  if (taken()) group_->Abort(why);
}
void GroupSeat::SetWakeup(std::function<void()> wakeup) {
  wakeup_ = std::move(wakeup);
  if (taken()) group_->SetWakeup(wakeup_);
}
void GroupSeat::Ring() {
  if (taken()) group_->Ring();
}
bool GroupSeat::PeerWaits() const { return taken() && group_->PeerWaits(); }

}  // namespace baton::transport
