#include "transport/nccl/payload_memory.h"

#include <cuda_runtime_api.h>

#include <mutex>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "transport/block_ring.h"
#include "transport/nccl/cuda_buffers.h"

namespace baton::transport {

PayloadMemory ChooseMemory(int gpu, PayloadMemory asked) {
  if (asked != PayloadMemory::kAuto) return asked;
  int count = 0;
  (void)cudaGetDeviceCount(&count);
  bool reaches_one = count <= 1;
  for (int other = 0; other < count && !reaches_one; ++other) {
    int can = 0;
    if (other != gpu) (void)cudaDeviceCanAccessPeer(&can, gpu, other);
    reaches_one = can != 0;
  }
  return reaches_one ? PayloadMemory::kGpu : PayloadMemory::kPinned;
}

absl::StatusOr<std::shared_ptr<std::byte>> AllocatePayloads(int gpu, size_t bytes,
                                                            PayloadMemory memory) {
  BATON_RETURN_IF_ERROR(RuntimeStatus(cudaSetDevice(gpu), "cudaSetDevice"));
  const bool pinned = memory == PayloadMemory::kPinned;
  void* data = nullptr;
  const cudaError_t error =
      pinned ? cudaHostAlloc(&data, bytes, cudaHostAllocPortable) : cudaMalloc(&data, bytes);
  const std::string what =
      absl::StrCat(bytes, " bytes of ", pinned ? "pinned memory" : "memory of the GPU",
                   " for hand-off messages");
  BATON_RETURN_IF_ERROR(RuntimeStatus(error, what.c_str()));
  return std::shared_ptr<std::byte>(static_cast<std::byte*>(data), [gpu, pinned](std::byte* p) {
    (void)cudaSetDevice(gpu);
    (void)(pinned ? cudaFreeHost(p) : cudaFree(p));
  });
}

bool IsPayloadMemory(const void* address) {
  cudaPointerAttributes attributes = {};
  if (cudaPointerGetAttributes(&attributes, address) != cudaSuccess) {
    (void)cudaGetLastError();
    return false;
  }
  return attributes.type != cudaMemoryTypeUnregistered;
}

struct PayloadRing::State {
  State(std::shared_ptr<std::byte> m, size_t bytes) : memory(std::move(m)), ring(bytes) {}
  const std::shared_ptr<std::byte> memory;
  mutable std::mutex mutex;
  BlockRing ring;        // guarded by mutex
  uint64_t next_id = 1;  // guarded by mutex
};

class PayloadRing::OwnedBlock final : public Block {
 public:
  OwnedBlock(std::shared_ptr<State> state, uint64_t id, std::span<std::byte> bytes)
      : Block(bytes), state_(std::move(state)), id_(id) {}
  ~OwnedBlock() override {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    state_->ring.GiveBack(id_);
  }

 private:
  const std::shared_ptr<State> state_;
  const uint64_t id_;
};

PayloadRing::PayloadRing(std::shared_ptr<std::byte> memory, size_t bytes)
    : state_(std::make_shared<State>(std::move(memory), bytes)) {}

std::shared_ptr<PayloadRing::Block> PayloadRing::TryTake(size_t bytes) {
  uint64_t id = 0;
  std::optional<size_t> begin;
  {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    id = state_->next_id;
    begin = state_->ring.Take(bytes, id);
    if (!begin.has_value()) return nullptr;
    ++state_->next_id;
  }
  return std::make_shared<OwnedBlock>(state_, id, std::span(state_->memory.get() + *begin, bytes));
}

size_t PayloadRing::bytes() const { return state_->ring.bytes(); }

size_t PayloadRing::bytes_in_use() const {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->ring.bytes_in_use();
}

}  // namespace baton::transport
