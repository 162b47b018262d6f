#include "tests/simt/nccl_window.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <map>
#include <mutex>
#include <new>
#include <string>
#include <utility>

#include "tests/simt/block.h"
#include "tests/simt/memory.h"
#include "tests/simt/nccl_comm.h"
#include "tests/simt/options.h"
#include "tests/simt/touch.h"

namespace baton::simt {
namespace {

constexpr size_t kPage = 4096;

// What the ranks agree on when they do something together.
enum class Together : uint32_t { kWindow = 1, kSignals = 2 };

void ReportMisuse(const std::string& what) {
  ReportFault({.kind = FaultKind::kCollective, .what = what, .kernel = {}, .where = {}});
}

struct Block {
  char* allocation = nullptr;  // what the range has given
  std::shared_ptr<SharedMemory> shared;
};
std::mutex blocks_mutex;
std::map<const void*, Block> blocks;  // of WindowMemory, by begin; guarded by blocks_mutex

std::atomic<int> held_puts{-1};

}  // namespace

void HoldPuts(int device) { held_puts = device; }
int HeldPuts() { return held_puts; }

std::shared_ptr<SharedMemory> SharedMemory::Create(size_t bytes) {
  const int fd = memfd_create("baton-simt", MFD_CLOEXEC);
  if (fd < 0) return nullptr;
  if (ftruncate(fd, static_cast<off_t>(bytes)) != 0) {
    close(fd);
    return nullptr;
  }
  return Map(fd, bytes);
}

std::shared_ptr<SharedMemory> SharedMemory::Map(int fd, size_t bytes) {
  struct stat found = {};
  void* data = MAP_FAILED;
  if (fstat(fd, &found) == 0 && static_cast<size_t>(found.st_size) >= bytes) {
    data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  }
  if (data == MAP_FAILED) {
    close(fd);
    return nullptr;
  }
  return std::shared_ptr<SharedMemory>(new SharedMemory(static_cast<char*>(data), bytes, fd));
}

SharedMemory::~SharedMemory() {
  munmap(data_, bytes_);
  close(fd_);
}

void* WindowMemory::Allocate(size_t bytes, int device) {
  Memory& memory = Memory::Get();
  if (memory.allocated_bytes(device) + bytes > GetOptions().device_bytes) return nullptr;
  std::shared_ptr<SharedMemory> shared = SharedMemory::Create(bytes);
  if (shared == nullptr) return nullptr;
  // Whole pages, which do not begin where the allocation does: only ncclMemFree takes it back.
  const size_t pages = (bytes + kPage - 1) / kPage * kPage;
  char* const allocation =
      static_cast<char*>(memory.Allocate(pages + 2 * kPage, MemoryKind::kDevice, device));
  if (allocation == nullptr) return nullptr;
  char* const data =
      reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(allocation) / kPage + 1) * kPage);
  memory.Mark(allocation, pages + 2 * kPage, 0);
  memory.Mark(data, bytes, kAddressable);
  if (mmap(data, pages, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, shared->fd(), 0) != data) {
    memory.Free(allocation);
    return nullptr;
  }
  const std::lock_guard<std::mutex> lock(blocks_mutex);
  blocks[data] = {allocation, std::move(shared)};
  return data;
}

bool WindowMemory::Free(void* data) {
  const std::lock_guard<std::mutex> lock(blocks_mutex);
  const auto it = blocks.find(data);
  if (it == blocks.end()) return false;
  // The range gets memory of its own again, and the pages stay with those who have mapped them.
  const size_t pages = (it->second.shared->bytes() + kPage - 1) / kPage * kPage;
  (void)mmap(data, pages, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  Memory::Get().Free(it->second.allocation);
  blocks.erase(it);
  return true;
}

std::shared_ptr<SharedMemory> WindowMemory::Find(const void* data) {
  const std::lock_guard<std::mutex> lock(blocks_mutex);
  const auto it = blocks.find(data);
  return it == blocks.end() ? nullptr : it->second.shared;
}

ncclWindow_t NcclOneSided::Register(void* memory, size_t bytes, int flags) {
  auto window = std::make_unique<ncclWindow_vidmem>();
  window->number = windows_.size();
  window->own = static_cast<char*>(memory);
  window->bytes = bytes;
  const std::shared_ptr<SharedMemory> own = WindowMemory::Find(memory);
  NcclMeeting mine;
  mine.what = static_cast<uint32_t>(Together::kWindow);
  mine.flags = static_cast<uint32_t>(flags);
  mine.number = window->number;
  mine.bytes = bytes;
  std::vector<int> fds;
  if (own == nullptr || !comm_->Meet(mine, own->fd(), &fds)) return nullptr;
  for (const int fd : fds) window->parts.push_back(SharedMemory::Map(fd, bytes));
  windows_.push_back(std::move(window));
  return windows_.back().get();
}

bool NcclOneSided::EnsureSignals() {
  if (has_signals_) return true;
  const size_t ranks = static_cast<size_t>(comm_->ranks());
  const size_t bytes = ranks * sizeof(Lane);
  const std::shared_ptr<SharedMemory> own = SharedMemory::Create(bytes);
  if (own == nullptr) return false;
  for (size_t rank = 0; rank < ranks; ++rank) new (own->data() + rank * sizeof(Lane)) Lane;
  NcclMeeting mine;
  mine.what = static_cast<uint32_t>(Together::kSignals);
  mine.bytes = bytes;
  std::vector<int> fds;
  if (!comm_->Meet(mine, own->fd(), &fds)) return false;
  for (const int fd : fds) signals_.push_back(SharedMemory::Map(fd, bytes));
  awaited.assign(ranks, 0);
  has_signals_ = true;
  return true;
}

ncclWindow_t NcclOneSided::Holding(const void* data, size_t bytes) const {
  const char* const begin = static_cast<const char*>(data);
  for (const auto& window : windows_) {
    if (begin < window->own || begin >= window->own + window->bytes) continue;
    if (bytes <= window->bytes - static_cast<size_t>(begin - window->own)) return window.get();
  }
  return nullptr;
}

bool NcclOneSided::Owns(ncclWindow_t window) const {
  for (const auto& known : windows_) {
    if (known.get() == window) return true;
  }
  return false;
}

NcclOneSided::Lane& NcclOneSided::LaneOf(int at, int from) const {
  char* const lanes = signals_[static_cast<size_t>(at)]->data();
  return *reinterpret_cast<Lane*>(lanes + static_cast<size_t>(from) * sizeof(Lane));
}

void NcclOneSided::Signal(int peer, ncclWindow_t window, size_t offset, size_t bytes) {
  Lane& lane = LaneOf(peer, comm_->rank());
  const uint64_t number = lane.signals.load(std::memory_order_relaxed);
  if (number - lane.accepted.load(std::memory_order_acquire) >= Lane::kLog) {
    return ReportMisuse("more than " + std::to_string(Lane::kLog) +
                        " signals that no wait was for");
  }
  lane.log[number % Lane::kLog] = {window == nullptr ? 0 : window->number, offset, bytes};
  lane.signals.store(number + 1, std::memory_order_release);
}

uint64_t NcclOneSided::SignalsOf(int peer) const {
  return LaneOf(comm_->rank(), peer).signals.load(std::memory_order_acquire);
}

void NcclOneSided::Accept(uint32_t op, int peer, uint64_t signals) {
  Lane& lane = LaneOf(comm_->rank(), peer);
  uint64_t number = lane.accepted.load(std::memory_order_relaxed);
  for (; number < signals; ++number) {
    const Lane::Put put = lane.log[number % Lane::kLog];
    if (put.bytes == 0) continue;
    char* const data = windows_[put.window]->own + put.offset;
    if (!Touch(op, data, put.bytes, /*write=*/true, "a put")) return;
    static const char host = 0;
    CopyMarks(data, &host, put.bytes);
  }
  lane.accepted.store(number, std::memory_order_release);
}

}  // namespace baton::simt
