#include "model/call_queue.h"

#include <utility>

#include "base/check.h"

namespace baton::model {

CallQueue::CallQueue(const std::string& thread_name) : thread_(thread_name, [this] { Run(); }) {}

CallQueue::~CallQueue() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closing_ = true;
  }
  posted_.notify_one();
  thread_.Join();
}

CallQueue::Ticket CallQueue::Post(Call call) {
  Ticket ticket = 0;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    calls_.push_back(std::move(call));
    ticket = next_ticket_++;
  }
  posted_.notify_one();
  return ticket;
}

absl::Status CallQueue::Wait(Ticket ticket) {
  std::unique_lock<std::mutex> lock(mutex_);
  BATON_CHECK(ticket < next_ticket_);
  done_.wait(lock, [&] { return next_done_ > ticket; });
  const auto result = results_.find(ticket);
  BATON_CHECK(result != results_.end());
  absl::Status status = std::move(result->second);
  results_.erase(result);
  return status;
}

void CallQueue::WaitForAll() {
  std::unique_lock<std::mutex> lock(mutex_);
  done_.wait(lock, [&] { return calls_.empty(); });
  results_.clear();
}

void CallQueue::Run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    posted_.wait(lock, [&] { return closing_ || !calls_.empty(); });
    if (calls_.empty()) return;
    const Call call = std::move(calls_.front());
    lock.unlock();
    absl::Status status = call();
    lock.lock();
    results_.emplace(next_done_++, std::move(status));
    calls_.pop_front();
    done_.notify_one();
  }
}

}  // namespace baton::model
