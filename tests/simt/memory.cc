#include "tests/simt/memory.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <sstream>

#include "tests/simt/options.h"

namespace baton::simt {
namespace {

void* Reserve(size_t bytes) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    std::perror("simt: cannot reserve addresses (is vm.overcommit_memory 2?)");
    std::abort();
  }
  return data;
}

// Bytes that are freed before their addresses are used again.
constexpr size_t kQuarantineBytes = size_t{1} << 30;

}  // namespace

struct Memory::State {
  mutable std::mutex mutex;
  std::map<const char*, Allocation> live;   // by begin
  std::map<const char*, Allocation> freed;  // in quarantine, by begin
  std::deque<const char*> quarantine;
  size_t quarantined_bytes = 0;
  std::map<size_t, std::deque<char*>> holes;  // of regions given back, by size with red zones
  size_t used = 0;                            // from base_ on
  std::map<int, size_t> device_bytes;
  uint32_t* words = nullptr;
};

Memory& Memory::Get() {
  static Memory* const memory = new Memory;  // outlives every static object
  return *memory;
}

Memory::Memory() : state_(new State) {
  base_ = static_cast<char*>(Reserve(kBytes));
  shadow_ = static_cast<uint8_t*>(Reserve(kBytes));
  state_->used = kRedZone;
}

void* Memory::Allocate(size_t bytes, MemoryKind kind, int device) {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  const size_t room = (bytes + 2 * kRedZone - 1) / kRedZone * kRedZone;  // with the zone behind
  char* data = nullptr;
  auto hole = state_->holes.find(room);
  if (hole != state_->holes.end() && !hole->second.empty()) {
    data = hole->second.front();
    hole->second.pop_front();
  } else {
    if (room > kBytes - state_->used) return nullptr;
    data = base_ + state_->used;
    state_->used += room;
  }
  Mark(data, bytes, kAddressable);
  state_->live[data] = {data, bytes, kind, device};
  state_->device_bytes[device] += kind == MemoryKind::kDevice ? bytes : 0;
  return data;
}

bool Memory::Free(void* data) {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  auto it = state_->live.find(static_cast<char*>(data));
  if (it == state_->live.end()) return false;
  const Allocation gone = it->second;
  state_->live.erase(it);
  state_->device_bytes[gone.device] -= gone.kind == MemoryKind::kDevice ? gone.bytes : 0;
  Mark(gone.data, gone.bytes, 0);
  state_->freed[gone.data] = gone;
  state_->quarantine.push_back(gone.data);
  state_->quarantined_bytes += gone.bytes;
  while (state_->quarantined_bytes > kQuarantineBytes) {
    const Allocation old = state_->freed.at(state_->quarantine.front());
    state_->quarantine.pop_front();
    state_->freed.erase(old.data);
    state_->quarantined_bytes -= old.bytes;
    const size_t room = (old.bytes + 2 * kRedZone - 1) / kRedZone * kRedZone;
    madvise(old.data, old.bytes & ~size_t{4095}, MADV_DONTNEED);
    state_->holes[room].push_back(old.data);
  }
  return true;
}

Allocation Memory::Find(const void* address) const {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  const char* const at = static_cast<const char*>(address);
  auto it = state_->live.upper_bound(at);
  if (it == state_->live.begin()) return {};
  --it;
  return at < it->second.data + it->second.bytes ? it->second : Allocation{};
}

std::string Memory::Describe(const void* address) const {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  const char* const at = static_cast<const char*>(address);
  const auto name = [](const Allocation& a) {
    std::ostringstream out;
    const char* const kinds[] = {"device", "pinned", "shared"};
    out << a.bytes << " bytes of " << kinds[static_cast<int>(a.kind)] << " memory";
    return out.str();
  };
  std::ostringstream out;
  auto it = state_->live.upper_bound(at);
  if (it != state_->live.begin()) {
    const Allocation& before = std::prev(it)->second;
    const size_t offset = static_cast<size_t>(at - before.data);
    if (offset < before.bytes) {
      out << "byte " << offset << " of " << name(before);
      return out.str();
    }
    if (offset < before.bytes + kRedZone) {
      out << offset - before.bytes << " bytes behind " << name(before);
      return out.str();
    }
  }
  if (it != state_->live.end() && it->second.data - at <= static_cast<ptrdiff_t>(kRedZone)) {
    out << it->second.data - at << " bytes before " << name(it->second);
    return out.str();
  }
  it = state_->freed.upper_bound(at);
  if (it != state_->freed.begin()) {
    const Allocation& gone = std::prev(it)->second;
    if (at < gone.data + gone.bytes) {
      out << "byte " << at - gone.data << " of " << name(gone) << " that was freed";
      return out.str();
    }
  }
  return "memory that was never allocated";
}

size_t Memory::allocated_bytes(int device) const {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  const auto it = state_->device_bytes.find(device);
  return it == state_->device_bytes.end() ? 0 : it->second;
}

void Memory::Mark(const void* address, size_t bytes, uint8_t state) const {
  std::memset(Shadow(address), state, bytes);
}

void Memory::AddMark(const void* address, size_t bytes, uint8_t bits) const {
  uint8_t* const shadow = Shadow(address);
  for (size_t i = 0; i < bytes; ++i) shadow[i] |= bits;
}

const void* Memory::FirstWithout(const void* address, size_t bytes, uint8_t bits) const {
  const uint8_t* const shadow = Shadow(address);
  for (size_t i = 0; i < bytes; ++i) {
    if ((shadow[i] & bits) != bits) return static_cast<const char*>(address) + i;
  }
  return nullptr;
}

uint32_t* Memory::WordTable() {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  if (state_->words == nullptr) {
    state_->words = static_cast<uint32_t*>(Reserve(kBytes / 4 * sizeof(uint32_t)));
  }
  return state_->words;
}

void Memory::ClearWordTable() {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  if (state_->words != nullptr)
    madvise(state_->words, kBytes / 4 * sizeof(uint32_t), MADV_DONTNEED);
}

size_t AllocatedBytes(int device) { return Memory::Get().allocated_bytes(device); }

}  // namespace baton::simt
