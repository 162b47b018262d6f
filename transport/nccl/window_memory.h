#ifndef BATON_TRANSPORT_NCCL_WINDOW_MEMORY_H_
#define BATON_TRANSPORT_NCCL_WINDOW_MEMORY_H_

// One block of a GPU's memory that can be a window. To take it and to give it back may wait for all
// that runs on the GPU, and some of that may stand until the endpoint's thread aborts it: so these
// calls are made on threads of their own, and the endpoint's looks at what has become of them.

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "base/thread.h"
#include "transport/nccl/one_sided_calls.h"

namespace baton::transport {

class WindowMemory {
 public:
  WindowMemory(const OneSidedCalls& calls, int gpu, size_t bytes);
  // A call that has not returned, and the block, are left to the process's end.
  ~WindowMemory();
  WindowMemory(const WindowMemory&) = delete;
  WindowMemory& operator=(const WindowMemory&) = delete;

  size_t bytes() const { return state_->bytes; }
  // One after the other, when it is not busy.
  void Allocate();
  void Free();
  bool is_busy() const { return state_->is_busy; }
  // When it is not busy: what has become of Allocate, and the block; null: there is none.
  const absl::Status& status() const { return state_->status; }
  std::byte* data() const { return static_cast<std::byte*>(state_->data); }

 private:
  struct State {
    OneSidedCalls calls;
    int gpu = 0;
    size_t bytes = 0;
    std::atomic<bool> is_busy{false};
    // Of the thread while it is busy, else of the owner.
    absl::Status status;
    void* data = nullptr;
  };
  void Begin(const std::function<void(State&)>& call);

  const std::shared_ptr<State> state_;
  std::unique_ptr<Thread> thread_;
};

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_NCCL_WINDOW_MEMORY_H_
