#include "decode_worker/expert_copier.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace baton::decode_worker {

ExpertCopier::ExpertCopier(model::ExpertHost& host, Clock& clock, int64_t bytes_per_second,
                           std::function<void()> wakeup)
    : host_(host),
      clock_(clock),
      bytes_per_second_(bytes_per_second),
      wakeup_(std::move(wakeup)),
      thread_("expert copies", [this] { RunUntilStopped(); }) {}

ExpertCopier::~ExpertCopier() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    version_ = 0;
  }
  changed_.notify_all();
}

void ExpertCopier::Begin(uint64_t version, const std::vector<scheduler::ExpertCopy>& copies) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    version_ = version;
    queue_.assign(copies.begin(), copies.end());
    finished_.clear();
  }
  changed_.notify_all();
}

std::vector<ExpertCopier::Finished> ExpertCopier::TakeFinished() {
  std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(finished_, {});
}

void ExpertCopier::RunUntilStopped() {
  uint64_t begun = 0;  // the version of the copy before
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stop_ || !queue_.empty(); });
    if (stop_) return;
    const uint64_t version = version_;
    const scheduler::ExpertCopy copy = queue_.front();
    queue_.pop_front();
    lock.unlock();
    if (std::exchange(begun, version) != version) host_.BeginCopies();
    absl::Status status =
        host_.Copy(copy, [this, version](int64_t bytes) { return MayGoOn(version, bytes); });
    lock.lock();
    if (version != version_) continue;  // others have come in the meantime, or nobody waits
    if (!status.ok()) queue_.clear();
    finished_.push_back({version, copy.layer, copy.slot, std::move(status)});
    if (!queue_.empty()) continue;
    lock.unlock();
    wakeup_();
    lock.lock();
  }
}

bool ExpertCopier::MayGoOn(uint64_t version, int64_t bytes) {
  std::unique_lock<std::mutex> lock(mutex_);
  const auto unwanted = [this, version] { return version != version_; };
  if (bytes_per_second_ > 0) {
    const Tick now = clock_.Now();
    if (next_piece_ > now) {
      changed_.wait_for(lock, std::chrono::nanoseconds((next_piece_ - now).nanos()), unwanted);
    }
    next_piece_ =
        std::max(next_piece_, now) +
        Duration::Seconds(static_cast<double>(bytes) / static_cast<double>(bytes_per_second_));
  }
  return !unwanted();
}

}  // namespace baton::decode_worker
