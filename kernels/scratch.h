#ifndef BATON_KERNELS_SCRATCH_H_
#define BATON_KERNELS_SCRATCH_H_

// Working memory of one op at a time: a bump allocator that keeps its blocks, so that a steady
// state allocates nothing. Reset at the start of an op invalidates what earlier ops got. Not
// thread-safe: allocate before going parallel.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace baton::kernels {

class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // Frees nothing; blocks that one op filled together become one block for the next.
  void Reset();

  // `count` uninitialized elements, 64-byte aligned, followed by 64 readable bytes; valid until
  // Reset.
  template <typename T>
  T* Get(int64_t count) {
    return static_cast<T*>(GetBytes(static_cast<size_t>(count) * sizeof(T)));
  }

  size_t capacity_bytes() const;

 private:
  struct Free {
    void operator()(void* p) const;
  };
  struct Block {
    std::unique_ptr<void, Free> data;
    size_t bytes = 0;
  };
  void* GetBytes(size_t bytes);
  static Block MakeBlock(size_t bytes);

  std::vector<Block> blocks_;  // the last one is in use
  size_t used_ = 0;            // bytes of the last block
};

}  // namespace baton::kernels

#endif  // BATON_KERNELS_SCRATCH_H_
