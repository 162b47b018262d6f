#ifndef BATON_PREFILL_WORKER_STAGING_RING_H_
#define BATON_PREFILL_WORKER_STAGING_RING_H_

// The registered memory from which hand-off messages are sent, a ring of blocks
// (transport/block_ring.h). One thread.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "transport/block_ring.h"

namespace baton::prefill_worker {

class StagingRing {
 public:
  // Of `bytes` bytes of `memory`, which may be a GPU's: only addresses are computed here.
  StagingRing(std::shared_ptr<std::byte> memory, size_t bytes)
      : memory_(std::move(memory)), ring_(bytes) {}

  // The whole memory, to register with a transport.
  std::span<std::byte> memory() { return {memory_.get(), ring_.bytes()}; }

  // A contiguous block of `bytes` (> 0, <= the ring's size), or an empty span when none is free
  // now. `id` names it; ids grow from call to call.
  std::span<std::byte> Take(size_t bytes, uint64_t id) {
    const std::optional<size_t> begin = ring_.Take(bytes, id);
    return begin.has_value() ? memory().subspan(*begin, bytes) : std::span<std::byte>();
  }

  // Gives a block back; unknown ids abort.
  void GiveBack(uint64_t id) { ring_.GiveBack(id); }

  size_t blocks_in_use() const { return ring_.blocks_in_use(); }

 private:
  const std::shared_ptr<std::byte> memory_;
  transport::BlockRing ring_;
};

}  // namespace baton::prefill_worker

#endif  // BATON_PREFILL_WORKER_STAGING_RING_H_
