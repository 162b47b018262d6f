#include "decode_worker/placement_thread.h"

#include <utility>

namespace baton::decode_worker {

PlacementThread::PlacementThread(std::function<void()> wakeup)
    : wakeup_(std::move(wakeup)), thread_("placements", [this] { RunUntilStopped(); }) {}

PlacementThread::~PlacementThread() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
}

void PlacementThread::Begin(scheduler::ComputePlacement work) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    work_ = std::move(work);
  }
  changed_.notify_all();
}

std::vector<scheduler::PlacementComputed> PlacementThread::TakeComputed() {
  std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(computed_, {});
}

void PlacementThread::RunUntilStopped() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stop_ || work_.has_value(); });
    if (stop_) return;
    const scheduler::ComputePlacement work = *std::exchange(work_, std::nullopt);
    lock.unlock();
    scheduler::PlacementComputed computed{work.ticket, scheduler::PlaceExperts(*work.request)};
    lock.lock();
    computed_.push_back(std::move(computed));
    lock.unlock();
    wakeup_();
    lock.lock();
  }
}

}  // namespace baton::decode_worker
