#ifndef BATON_TRANSPORT_STAGING_POOL_H_
#define BATON_TRANSPORT_STAGING_POOL_H_

// Bounded memory for what has arrived and was not yet polled. Buffers come back when their
// StagingBuffer dies and are kept for reuse, so that a steady stream of messages allocates nothing.
// Sizes are rounded up to powers of two (at least 1 KiB); memory in use plus memory kept never
// exceeds the capacity. Thread-safe; buffers may outlive the pool.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace baton::transport {

class StagingPool;

// One buffer, 64-byte aligned; movable. Empty (false) when default-made or refused.
class StagingBuffer {
 public:
  StagingBuffer() = default;
  StagingBuffer(StagingBuffer&& other) noexcept { *this = std::move(other); }
  StagingBuffer& operator=(StagingBuffer&& other) noexcept;
  ~StagingBuffer() { Reset(); }

  explicit operator bool() const { return data_ != nullptr; }
  std::span<std::byte> bytes() const { return {data_, size_}; }
  void Reset();

 private:
  friend class StagingPool;
  struct State;
  std::shared_ptr<State> state_;
  std::byte* data_ = nullptr;
  size_t size_ = 0;      // as asked
  size_t capacity_ = 0;  // as rounded
};

class StagingPool {
 public:
  explicit StagingPool(size_t capacity_bytes);

  // A buffer of `size_bytes` (0 is served as 1), or an empty one when the pool is exhausted.
  StagingBuffer TryAcquire(size_t size_bytes);

  // What a buffer of `size_bytes` counts for against the capacity.
  static size_t RoundedBytes(size_t size_bytes);

  size_t in_use_bytes() const;

 private:
  std::shared_ptr<StagingBuffer::State> state_;
};

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_STAGING_POOL_H_
