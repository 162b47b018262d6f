#include "transport/nccl/window_memory.h"

#include <utility>

#include "base/check.h"
#include "transport/nccl/cuda_buffers.h"
#include "transport/nccl/nccl_status.h"

namespace baton::transport {

WindowMemory::WindowMemory(const OneSidedCalls& calls, int gpu, size_t bytes)
    : state_(std::make_shared<State>()) {
  state_->calls = calls;
  state_->gpu = gpu;
  state_->bytes = bytes;
}

WindowMemory::~WindowMemory() {
  if (is_busy()) (void)thread_.release();  // to join it would be to wait for it
}

void WindowMemory::Begin(const std::function<void(State&)>& call) {
  BATON_CHECK(!is_busy());
  state_->is_busy = true;
  // The one before has returned, or is about to.
  thread_ = std::make_unique<Thread>("baton-window", [state = state_, call] {
    state->status = RuntimeStatus(cudaSetDevice(state->gpu), "cudaSetDevice");
    if (state->status.ok()) call(*state);
    state->is_busy = false;
  });
}

void WindowMemory::Allocate() {
  Begin([](State& state) {
    state.status = NcclStatus(state.calls.mem_alloc(&state.data, state.bytes), "ncclMemAlloc");
  });
}

void WindowMemory::Free() {
  Begin([](State& state) { (void)state.calls.mem_free(std::exchange(state.data, nullptr)); });
}

}  // namespace baton::transport
