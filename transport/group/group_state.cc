#include "transport/group/group_state.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "transport/group/group.h"

namespace baton::transport {

GroupState::GroupState(int rank, std::vector<std::string> names)
    : rank_(rank), names_(std::move(names)), reports_(names_.size()) {}

std::string GroupState::Name(int rank) const {
  return RankName(rank, names_[static_cast<size_t>(rank)]);
}

std::string GroupState::Names(const std::vector<int>& ranks) const {
  return RankNames(ranks, names_);
}

bool GroupState::Break(GroupFailure failure, uint64_t last_good_call) {
  BATON_CHECK(!failure.status.ok());
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const std::vector<int>& lost = failure.lost_ranks;
    if (std::find(lost.begin(), lost.end(), rank_) != lost.end()) gone_.insert(rank_);
    if (last_good_call >= last_good_call_.load()) return false;
    failure_ = std::move(failure);
    last_good_call_.store(last_good_call);
  }
  Wake();
  return true;
}

GroupFailure GroupState::failure() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return failure_;
}

void GroupState::Gone(int rank) {
  std::lock_guard<std::mutex> lock(mutex_);
  gone_.insert(rank);
}

std::vector<int> GroupState::gone() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return {gone_.begin(), gone_.end()};
}

void GroupState::SetWakeup(std::function<void()> wakeup) {
  std::lock_guard<std::mutex> lock(mutex_);
  wakeup_ = std::move(wakeup);
}

// Under the lock: who has taken the wakeup back is not called any more.
void GroupState::Wake() const {
  std::lock_guard<std::mutex> lock(mutex_);
  if (wakeup_) wakeup_();
}

void GroupState::PeerAnnounced(uint64_t call) {
  uint64_t known = announced_.load();
  while (known < call && !announced_.compare_exchange_weak(known, call)) {
  }
  if (PeerWaits()) Wake();
}

void GroupState::PeerReported(int rank, uint64_t call, std::vector<int> ranks, Tick now) {
  std::lock_guard<std::mutex> lock(mutex_);
  reports_[static_cast<size_t>(rank)] = {call, std::move(ranks), now};
}

std::vector<int> GroupState::Suspects(const std::vector<int>& missing, uint64_t call,
                                      Tick since) const {
  std::lock_guard<std::mutex> lock(mutex_);
  std::set<int> suspects;
  std::set<int> seen = {rank_};
  std::vector<int> open = missing;
  while (!open.empty()) {
    const int rank = open.back();
    open.pop_back();
    if (!seen.insert(rank).second) continue;
    const Report& report = reports_[static_cast<size_t>(rank)];
    if (report.call > 0 && report.call < call && report.at >= since) {
      open.insert(open.end(), report.ranks.begin(), report.ranks.end());
    } else {
      suspects.insert(rank);
    }
  }
  if (suspects.empty()) return missing;  // they wait for each other
  return {suspects.begin(), suspects.end()};
}

}  // namespace baton::transport
