#ifndef BATON_PREFILL_WORKER_STAGING_RING_H_
#define BATON_PREFILL_WORKER_STAGING_RING_H_

// The registered memory from which hand-off messages are sent: blocks are taken in ring order, may
// be given back in any order, and are reused when everything before them is back. One thread.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>

namespace baton::prefill_worker {

class StagingRing {
 public:
  explicit StagingRing(size_t bytes);

  // The whole memory, to register with a transport.
  std::span<std::byte> memory() { return {memory_.get(), bytes_}; }

  // A contiguous block of `bytes` (> 0, <= the ring's size), or an empty span when none is free
  // now. `id` names it; ids grow from call to call.
  std::span<std::byte> Take(size_t bytes, uint64_t id);

  // Gives a block back; unknown ids abort.
  void GiveBack(uint64_t id);

  size_t blocks_in_use() const { return in_use_; }

 private:
  struct Block {
    uint64_t id = 0;
    size_t begin = 0;
    size_t end = 0;
    bool free = false;
  };

  size_t bytes_;
  std::unique_ptr<std::byte[]> memory_;
  std::deque<Block> blocks_;  // oldest first; [front.begin, back.end) is in use, modulo the ring
  size_t in_use_ = 0;
};

}  // namespace baton::prefill_worker

#endif  // BATON_PREFILL_WORKER_STAGING_RING_H_
