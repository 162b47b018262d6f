#ifndef BATON_WIRE_DEFERRED_INBOX_H_
#define BATON_WIRE_DEFERRED_INBOX_H_

// Between streams and a loop's bounded inbox: an event that finds the inbox full waits here, and
// its source is told when it was taken, so that it reads on only then. Each source thus has one
// event here at most (and a last one that says that it is gone), which bounds the whole.

#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <utility>

namespace baton::wire {

// Thread-safe. Events are taken in the order of their pushes.
template <typename Event>
class DeferredInbox {
 public:
  // `try_push` must leave its argument untouched when it returns false. Called with a lock held.
  explicit DeferredInbox(std::function<bool(Event&&)> try_push) : try_push_(std::move(try_push)) {}

  // Calls `taken` (may be empty) once the event is in the inbox: before returning, or from Flush.
  void Push(Event event, std::function<void()> taken = {}) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!closed_ && (!waiting_.empty() || !try_push_(std::move(event)))) {
        waiting_.push_back({std::move(event), std::move(taken)});
        return;
      }
    }
    if (taken) taken();
  }

  // The loop has made room: call after every step, on its thread.
  void Flush() {
    std::deque<std::function<void()>> taken;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (!waiting_.empty() && try_push_(std::move(waiting_.front().event))) {
        if (waiting_.front().taken) taken.push_back(std::move(waiting_.front().taken));
        waiting_.pop_front();
      }
    }
    for (const std::function<void()>& each : taken) each();
  }

  // The loop has ended: drops what waits and all that still comes, so that its sources go on and
  // can end.
  void Close() {
    std::deque<Waiting> dropped;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closed_ = true;
      dropped.swap(waiting_);
    }
    for (const Waiting& each : dropped) {
      if (each.taken) each.taken();
    }
  }

 private:
  struct Waiting {
    Event event;
    std::function<void()> taken;
  };
  const std::function<bool(Event&&)> try_push_;
  std::mutex mutex_;
  std::deque<Waiting> waiting_;  // guarded by mutex_
  bool closed_ = false;          // guarded by mutex_
};

}  // namespace baton::wire

#endif  // BATON_WIRE_DEFERRED_INBOX_H_
