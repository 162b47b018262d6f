#ifndef BATON_TRANSPORT_NCCL_PAYLOAD_MEMORY_H_
#define BATON_TRANSPORT_NCCL_PAYLOAD_MEMORY_H_

// Memory that payloads lie in: a GPU's, or pinned.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "transport/nccl/nccl_transport.h"

namespace baton::transport {

// What kAuto stands for on this GPU.
PayloadMemory ChooseMemory(int gpu, PayloadMemory asked);

// RESOURCE_EXHAUSTED, with the amount, when there is not so much.
absl::StatusOr<std::shared_ptr<std::byte>> AllocatePayloads(int gpu, size_t bytes,
                                                            PayloadMemory memory);

// GPUs can read it: theirs, or pinned.
bool IsPayloadMemory(const void* address);

// A ring of staging buffers. Thread-safe; blocks may outlive it.
class PayloadRing {
 public:
  class Block {
   public:
    virtual ~Block() = default;
    std::span<std::byte> bytes() const { return bytes_; }

   protected:
    explicit Block(std::span<std::byte> bytes) : bytes_(bytes) {}

   private:
    const std::span<std::byte> bytes_;
  };

  PayloadRing(std::shared_ptr<std::byte> memory, size_t bytes);

  // Null when there is no room now. `bytes` > 0 and at most the ring's.
  std::shared_ptr<Block> TryTake(size_t bytes);
  size_t bytes() const;
  size_t bytes_in_use() const;

 private:
  struct State;
  class OwnedBlock;
  const std::shared_ptr<State> state_;
};

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_NCCL_PAYLOAD_MEMORY_H_
