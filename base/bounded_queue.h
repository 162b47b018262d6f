#ifndef BATON_BASE_BOUNDED_QUEUE_H_
#define BATON_BASE_BOUNDED_QUEUE_H_

// A queue between threads with a fixed capacity. Full is a returned refusal: the item stays with
// the caller. Many producers, one or many consumers; all methods are thread-safe. A waiting
// consumer wakes on Push, Wake and Close.

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/clock.h"

namespace baton {

template <typename T>
class BoundedQueue {
 public:
  explicit BoundedQueue(size_t capacity) : capacity_(capacity) { BATON_CHECK_GT(capacity, 0u); }

  // Moves `item` in and returns true; returns false and leaves `item` untouched when full or
  // closed.
  [[nodiscard]] bool TryPush(T&& item) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (closed_ || items_.size() >= capacity_) return false;
      items_.push_back(std::move(item));
    }
    ready_.notify_one();
    return true;
  }

  // Appends every queued item to `out` without waiting; returns how many.
  size_t DrainInto(std::vector<T>& out) {
    std::lock_guard<std::mutex> lock(mutex_);
    const size_t count = items_.size();
    for (T& item : items_) out.push_back(std::move(item));
    items_.clear();
    woken_ = false;
    return count;
  }

  // Waits until an item is there, Wake or Close was called, or `timeout` has passed.
  void WaitFor(Duration timeout) {
    std::unique_lock<std::mutex> lock(mutex_);
    ready_.wait_for(lock, std::chrono::nanoseconds(timeout.nanos()),
                    [this] { return woken_ || closed_ || !items_.empty(); });
    woken_ = false;
  }

  // Ends one wait without an item.
  void Wake() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      woken_ = true;
    }
    ready_.notify_one();
  }

  // Refuses all later pushes; items already queued can still be drained.
  void Close() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closed_ = true;
    }
    ready_.notify_all();
  }

  size_t size() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return items_.size();
  }
  size_t capacity() const { return capacity_; }

 private:
  const size_t capacity_;
  mutable std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<T> items_;  // guarded by mutex_
  bool woken_ = false;   // guarded by mutex_
  bool closed_ = false;  // guarded by mutex_
};

}  // namespace baton

#endif  // BATON_BASE_BOUNDED_QUEUE_H_
