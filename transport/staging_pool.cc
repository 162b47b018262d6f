#include "transport/staging_pool.h"

#include <algorithm>
#include <bit>
#include <map>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "base/check.h"

namespace baton::transport {
namespace {

constexpr std::align_val_t kAlignment{64};
constexpr size_t kSmallestBytes = 1024;

}  // namespace

struct StagingBuffer::State {
  explicit State(size_t capacity) : capacity_bytes(capacity) {}
  ~State() {
    for (auto& [bytes, buffers] : kept) {
      for (std::byte* buffer : buffers) ::operator delete(buffer, kAlignment);
    }
  }

  // Frees kept buffers, largest first, until `wanted` more bytes fit. Requires the mutex.
  void MakeRoom(size_t wanted) {
    while (in_use_bytes + kept_bytes + wanted > capacity_bytes && !kept.empty()) {
      auto largest = std::prev(kept.end());
      ::operator delete(largest->second.back(), kAlignment);
      kept_bytes -= largest->first;
      largest->second.pop_back();
      if (largest->second.empty()) kept.erase(largest);
    }
  }

  const size_t capacity_bytes;
  std::mutex mutex;
  size_t in_use_bytes = 0;                         // guarded by mutex
  size_t kept_bytes = 0;                           // guarded by mutex
  std::map<size_t, std::vector<std::byte*>> kept;  // by rounded size; guarded by mutex
};

StagingBuffer& StagingBuffer::operator=(StagingBuffer&& other) noexcept {
  if (this == &other) return *this;
  Reset();
  state_ = std::move(other.state_);
  data_ = std::exchange(other.data_, nullptr);
  size_ = std::exchange(other.size_, 0);
  capacity_ = std::exchange(other.capacity_, 0);
  return *this;
}

void StagingBuffer::Reset() {
  if (data_ == nullptr) return;
  {
    std::lock_guard<std::mutex> lock(state_->mutex);
    state_->kept[capacity_].push_back(data_);
    state_->in_use_bytes -= capacity_;
    state_->kept_bytes += capacity_;
  }
  data_ = nullptr;
  state_.reset();
}

StagingPool::StagingPool(size_t capacity_bytes)
    : state_(std::make_shared<StagingBuffer::State>(capacity_bytes)) {
  BATON_CHECK_GE(capacity_bytes, kSmallestBytes);
}

size_t StagingPool::RoundedBytes(size_t size_bytes) {
  return std::bit_ceil(std::max(size_bytes, kSmallestBytes));
}

StagingBuffer StagingPool::TryAcquire(size_t size_bytes) {
  StagingBuffer buffer;
  const size_t rounded = RoundedBytes(size_bytes);
  std::lock_guard<std::mutex> lock(state_->mutex);
  if (auto it = state_->kept.find(rounded); it != state_->kept.end()) {
    buffer.data_ = it->second.back();
    it->second.pop_back();
    if (it->second.empty()) state_->kept.erase(it);
    state_->kept_bytes -= rounded;
  } else {
    if (state_->in_use_bytes + rounded > state_->capacity_bytes) return buffer;
    state_->MakeRoom(rounded);
    buffer.data_ = static_cast<std::byte*>(::operator new(rounded, kAlignment));
  }
  buffer.state_ = state_;
  buffer.size_ = size_bytes;
  buffer.capacity_ = rounded;
  state_->in_use_bytes += rounded;
  return buffer;
}

size_t StagingPool::in_use_bytes() const {
  std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->in_use_bytes;
}

}  // namespace baton::transport
