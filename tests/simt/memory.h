#ifndef BATON_TESTS_SIMT_MEMORY_H_
#define BATON_TESTS_SIMT_MEMORY_H_

// The memory of the emulated GPUs: one reserved range of addresses with a shadow byte for each of
// its bytes. Allocations lie between red zones and are not used again at once after they are freed,
// so that a pointer that left its allocation meets memory that nobody may touch. Blocks' shared
// memory lies in the same range.
//
// Thread-safe, but for two owners of one allocation.

#include <cstddef>
#include <cstdint>
#include <string>

namespace baton::simt {

// Bits of a shadow byte.
inline constexpr uint8_t kAddressable = 1;
inline constexpr uint8_t kInitialized = 2;
inline constexpr uint8_t kInFlight = 4;  // an asynchronous copy to it is under way

enum class MemoryKind : uint8_t { kDevice, kPinned, kShared };

struct Allocation {
  char* data = nullptr;
  size_t bytes = 0;
  MemoryKind kind = MemoryKind::kDevice;
  int device = 0;
};

class Memory {
 public:
  static Memory& Get();

  // Not initialized, 256-byte aligned (shared memory: 1024); null when the range is used up.
  void* Allocate(size_t bytes, MemoryKind kind, int device);
  // False for what is not the beginning of a live allocation.
  bool Free(void* data);
  // The live allocation that holds the address; `data` null where there is none.
  Allocation Find(const void* address) const;
  // What lies at or next to an address, for people.
  std::string Describe(const void* address) const;
  size_t allocated_bytes(int device) const;

  bool Contains(const void* address) const {
    return static_cast<size_t>(static_cast<const char*>(address) - base_) < kBytes;
  }
  // The shadow of `address`, which lies in the range.
  uint8_t* Shadow(const void* address) const {
    return shadow_ + (static_cast<const char*>(address) - base_);
  }
  // Number of the 4-byte word at `address`, which lies in the range.
  size_t Word(const void* address) const {
    return static_cast<size_t>(static_cast<const char*>(address) - base_) / 4;
  }
  // Sets all shadow bytes of a range.
  void Mark(const void* address, size_t bytes, uint8_t state) const;
  void AddMark(const void* address, size_t bytes, uint8_t bits) const;
  // The first byte of [address, address + bytes) whose shadow lacks one of `bits`; null: none.
  const void* FirstWithout(const void* address, size_t bytes, uint8_t bits) const;

  // A table of 4-byte entries for each word of the range, zero at first, made on first use.
  uint32_t* WordTable();
  void ClearWordTable();

 private:
  static constexpr size_t kBytes = size_t{1} << 36;
  static constexpr size_t kRedZone = 1024;

  Memory();

  char* base_ = nullptr;
  uint8_t* shadow_ = nullptr;
  struct State;
  State* const state_;
};

}  // namespace baton::simt

#endif  // BATON_TESTS_SIMT_MEMORY_H_
