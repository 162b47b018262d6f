#ifndef BATON_TRANSPORT_BLOCK_RING_H_
#define BATON_TRANSPORT_BLOCK_RING_H_

// Which parts of a ring of bytes are in use: blocks are taken in ring order, may be given back in
// any order, and are reused when everything before them is back. Knows nothing of the memory. Not
// thread-safe.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>

namespace baton::transport {

class BlockRing {
 public:
  explicit BlockRing(size_t bytes);

  // Where a contiguous block of `bytes` (> 0, <= the ring's size) begins; nothing when none is free
  // now. `id` names it; ids grow from call to call.
  std::optional<size_t> Take(size_t bytes, uint64_t id);

  // Gives a block back; unknown ids abort.
  void GiveBack(uint64_t id);

  size_t bytes() const { return bytes_; }
  size_t blocks_in_use() const { return in_use_; }
  size_t bytes_in_use() const { return bytes_in_use_; }

 private:
  struct Block {
    uint64_t id = 0;
    size_t begin = 0;
    size_t end = 0;
    bool free = false;
  };

  const size_t bytes_;
  std::deque<Block> blocks_;  // oldest first; [front.begin, back.end) is in use, modulo the ring
  size_t in_use_ = 0;
  size_t bytes_in_use_ = 0;
};

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_BLOCK_RING_H_
