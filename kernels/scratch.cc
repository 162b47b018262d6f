#include "kernels/scratch.h"

#include <algorithm>
#include <cstdlib>

#include "base/check.h"

namespace baton::kernels {
namespace {

constexpr size_t kAlign = 64;
constexpr size_t kMinBlock = size_t{1} << 16;

size_t RoundUp(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

}  // namespace

void Scratch::Free::operator()(void* p) const { std::free(p); }

Scratch::Block Scratch::MakeBlock(size_t bytes) {
  Block block;
  block.bytes = RoundUp(bytes);
  block.data.reset(std::aligned_alloc(kAlign, block.bytes));
  BATON_CHECK_MSG(block.data != nullptr,
                  "no memory for " + std::to_string(block.bytes) + " bytes of scratch");
  return block;
}

void Scratch::Reset() {
  if (blocks_.size() > 1) {
    const size_t total = capacity_bytes();
    blocks_.clear();
    blocks_.push_back(MakeBlock(total));
  }
  used_ = 0;
}

void* Scratch::GetBytes(size_t bytes) {
  const size_t wanted = RoundUp(bytes) + kAlign;  // readable padding behind the last element
  if (blocks_.empty() || used_ + wanted > blocks_.back().bytes) {
    // Earlier blocks stay: this op's pointers into them are live.
    blocks_.push_back(MakeBlock(std::max(wanted, kMinBlock)));
    used_ = 0;
  }
  void* result = static_cast<uint8_t*>(blocks_.back().data.get()) + used_;
  used_ += wanted;
  return result;
}

size_t Scratch::capacity_bytes() const {
  size_t total = 0;
  for (const Block& block : blocks_) total += block.bytes;
  return total;
}

}  // namespace baton::kernels
