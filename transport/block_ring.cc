#include "transport/block_ring.h"

#include <algorithm>

#include "base/check.h"

namespace baton::transport {

BlockRing::BlockRing(size_t bytes) : bytes_(bytes) { BATON_CHECK_GT(bytes, 0u); }

std::optional<size_t> BlockRing::Take(size_t bytes, uint64_t id) {
  BATON_CHECK(bytes > 0 && bytes <= bytes_);
  size_t begin = 0;
  if (!blocks_.empty()) {
    BATON_CHECK_LT(blocks_.back().id, id);
    const size_t tail = blocks_.front().begin;
    const size_t head = blocks_.back().end;
    // Blocks in use lie in [tail, head) or, wrapped, in [tail, bytes_) and [0, head). A full ring
    // has head == tail; that an empty one has too is ruled out above.
    if (head > tail && bytes_ - head >= bytes) {
      begin = head;
    } else if (head > tail && tail >= bytes) {
      begin = 0;
    } else if (head < tail && tail - head >= bytes) {
      begin = head;
    } else {
      return std::nullopt;
    }
  }
  blocks_.push_back({id, begin, begin + bytes, false});
  ++in_use_;
  bytes_in_use_ += bytes;
  return begin;
}

void BlockRing::GiveBack(uint64_t id) {
  const auto it = std::lower_bound(blocks_.begin(), blocks_.end(), id,
                                   [](const Block& block, uint64_t i) { return block.id < i; });
  BATON_CHECK(it != blocks_.end() && it->id == id && !it->free);
  it->free = true;
  --in_use_;
  bytes_in_use_ -= it->end - it->begin;
  while (!blocks_.empty() && blocks_.front().free) blocks_.pop_front();
}

}  // namespace baton::transport
