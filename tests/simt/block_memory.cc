// What a thread's accesses to memory may be, and the races between them.

#include <link.h>

#include <algorithm>
#include <sstream>
#include <utility>

#include "tests/simt/block.h"
#include "tests/simt/memory.h"

namespace baton::simt {
namespace {

// The parts of the program that hold constants.
struct ConstantSegments {
  std::vector<std::pair<uintptr_t, uintptr_t>> ranges;
  ConstantSegments() {
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* out) {
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            const auto& header = info->dlpi_phdr[i];
            if (header.p_type != PT_LOAD || (header.p_flags & PF_W) != 0) continue;
            const uintptr_t begin = info->dlpi_addr + header.p_vaddr;
            static_cast<ConstantSegments*>(out)->ranges.emplace_back(begin, begin + header.p_memsz);
          }
          return 0;
        },
        this);
  }
  bool Contains(const void* address) const {
    const uintptr_t at = reinterpret_cast<uintptr_t>(address);
    return std::any_of(ranges.begin(), ranges.end(),
                       [at](const auto& range) { return at >= range.first && at < range.second; });
  }
};

const ConstantSegments& Constants() {
  static const ConstantSegments* const segments = new ConstantSegments;
  return *segments;
}

}  // namespace

void* BlockRunner::SharedBytes(size_t bytes, const void* site) {
  if (bytes > grid_->shared_bytes) {
    std::ostringstream what;
    what << "the kernel uses " << bytes << " bytes of shared memory, it was launched with "
         << grid_->shared_bytes;
    Fail(FaultKind::kBadLaunch, what.str(), site);
  }
  return shared_;
}

const char* BlockRunner::RangeProblem(const void* address, int bytes, bool write,
                                      FaultKind* kind) const {
  const Memory& memory = Memory::Get();
  const uint8_t* shadow = memory.Shadow(address);
  uint8_t all = 0xFF, any = 0;
  for (int i = 0; i < bytes; ++i) {
    all &= shadow[i];
    any |= shadow[i];
  }
  if ((all & kAddressable) == 0) {
    *kind = FaultKind::kOutOfBounds;
    return "outside of every allocation";
  }
  if ((any & kInFlight) != 0) {
    *kind = FaultKind::kAsyncCopy;
    return "while an asynchronous copy to it is under way";
  }
  if (!write && (all & kInitialized) == 0) {
    *kind = FaultKind::kUninitialized;
    return "that nothing has been written to";
  }
  return nullptr;
}

void BlockRunner::Access(const void* address, int bytes, bool write, bool may_be_unaligned,
                         const void* site) {
  if (!CheckMemory(address, bytes, write, may_be_unaligned, site)) return;
  if (write) {
    Memory::Get().AddMark(address, static_cast<size_t>(bytes), kInitialized);
    NoteSharedWrite(address, bytes, site);
  }
  if (grid_->races != nullptr) NoteRace(address, bytes, write, /*atomic=*/false, site);
}

// False for memory that is the thread's own or constant.
bool BlockRunner::CheckMemory(const void* address, int bytes, bool write, bool may_be_unaligned,
                              const void* site) {
  const Memory& memory = Memory::Get();
  if (!memory.Contains(address)) {
    const char* const at = static_cast<const char*>(address);
    if (at >= thread_->stack && at < thread_->stack + kStackBytes) {
      if (!thread_->touched.empty()) TouchRegisters(address, bytes, site);
      return false;
    }
    if (!grid_->check_memory || (!write && Constants().Contains(address))) return false;
    std::ostringstream what;
    what << (write ? "write" : "read") << " of " << bytes << " bytes of the host's memory";
    Fail(FaultKind::kHostMemory, what.str(), site);
  }
  if (grid_->check_memory) {
    const auto fail = [&](FaultKind kind, const char* problem) {
      std::ostringstream what;
      what << (write ? "write" : "read") << " of " << bytes << " bytes, " << problem << ": "
           << memory.Describe(address);
      Fail(kind, what.str(), site);
    };
    if (!may_be_unaligned && reinterpret_cast<uintptr_t>(address) % static_cast<size_t>(bytes)) {
      fail(FaultKind::kMisaligned, "not aligned to its size");
    }
    FaultKind kind = FaultKind::kOutOfBounds;
    const char* const problem = RangeProblem(address, bytes, write, &kind);
    if (problem != nullptr) fail(kind, problem);
  }
  return true;
}

void BlockRunner::NoteRace(const void* address, int bytes, bool write, bool atomic,
                           const void* site) {
  Memory& memory = Memory::Get();
  const char* const at = static_cast<const char*>(address);
  const bool is_shared = at >= shared_ && at < shared_ + kMaxSharedBytes;
  RaceMap& races = is_shared ? shared_races_ : *grid_->races;
  const std::optional<AccessRecord> earlier =
      races.Note(reinterpret_cast<size_t>(address), bytes, write, atomic, block_,
                 thread_->place.thread, thread_->clock, site);
  if (earlier.has_value()) {
    std::ostringstream what;
    what << (write ? "write" : "read") << " of " << memory.Describe(address)
         << ", not ordered behind the access of ";
    if (earlier->thread == grid_->threads) {
      what << "the copy engine for a copy";
    } else {
      what << "thread " << earlier->thread;
    }
    what << " of block " << earlier->block << " at " << Locate(earlier->site);
    Fail(FaultKind::kRace, what.str(), site);
  }
  if (is_shared) return;
  uint32_t* const writers = memory.WordTable();
  for (size_t word = memory.Word(at); word <= memory.Word(at + bytes - 1); ++word) {
    const uint32_t writer = __atomic_load_n(&writers[word], __ATOMIC_RELAXED);
    if (writer != 0 && writer != grid_->op && !IsOrderedBehind(grid_->op, writer)) {
      std::ostringstream what;
      what << (write ? "write" : "read") << " of " << memory.Describe(address)
           << ", which another stream writes; nothing orders this kernel behind that";
      Fail(FaultKind::kStreamOrder, what.str(), site);
    }
    if (write) __atomic_store_n(&writers[word], grid_->op, __ATOMIC_RELAXED);
  }
}

uint32_t BlockRunner::Atomic(AtomicOp op, void* address, uint32_t value, const void* site) {
  CheckMemory(address, 4, /*write=*/false, /*may_be_unaligned=*/false, site);
  if (grid_->races != nullptr) NoteRace(address, 4, /*write=*/true, /*atomic=*/true, site);
  auto* const word = static_cast<uint32_t*>(address);
  uint32_t before = __atomic_load_n(word, __ATOMIC_RELAXED);
  const auto combine = [op, value](uint32_t old) {
    const int32_t a = static_cast<int32_t>(old), b = static_cast<int32_t>(value);
    switch (op) {
      case AtomicOp::kAdd:
        return old + value;
      case AtomicOp::kOr:
        return old | value;
      case AtomicOp::kMax:
        return static_cast<uint32_t>(std::max(a, b));
      case AtomicOp::kMin:
        return static_cast<uint32_t>(std::min(a, b));
    }
    return old;
  };
  while (!__atomic_compare_exchange_n(word, &before, combine(before), false, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED)) {
  }
  return before;
}

}  // namespace baton::simt
