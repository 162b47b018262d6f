#include "tests/simt/touch.h"

#include <sstream>
#include <string>

#include "tests/simt/block.h"
#include "tests/simt/memory.h"

namespace baton::simt {
namespace {

void Fail(FaultKind kind, const std::string& what) {
  ReportFault({.kind = kind, .what = what, .kernel = {}, .where = {}});
}

}  // namespace

bool Touch(uint32_t op, const void* address, size_t bytes, bool write, const char* what) {
  Memory& memory = Memory::Get();
  if (bytes == 0 || !memory.Contains(address)) return true;
  const void* const bad = memory.FirstWithout(address, bytes, kAddressable);
  if (bad != nullptr) {
    std::ostringstream text;
    text << what << " of " << bytes << " bytes " << (write ? "to " : "from ")
         << memory.Describe(address) << " touches " << memory.Describe(bad);
    Fail(FaultKind::kOutOfBounds, text.str());
    return false;
  }
  if (op == 0) return true;
  uint32_t* const writers = memory.WordTable();
  const char* const end = static_cast<const char*>(address) + bytes - 1;
  for (size_t word = memory.Word(address); word <= memory.Word(end); ++word) {
    const uint32_t writer = __atomic_load_n(&writers[word], __ATOMIC_RELAXED);
    if (writer != 0 && writer != op && !IsOrderedBehind(op, writer)) {
      std::ostringstream text;
      text << what << (write ? " to " : " from ") << memory.Describe(address)
           << ", which another stream writes; nothing orders it behind that";
      Fail(FaultKind::kStreamOrder, text.str());
      return false;
    }
    if (write) __atomic_store_n(&writers[word], op, __ATOMIC_RELAXED);
  }
  return true;
}

void CopyMarks(void* to, const void* from, size_t bytes) {
  const Memory& memory = Memory::Get();
  if (!memory.Contains(to)) return;
  if (!memory.Contains(from)) return memory.AddMark(to, bytes, kInitialized);
  const uint8_t* const source = memory.Shadow(from);
  uint8_t* const target = memory.Shadow(to);
  for (size_t i = 0; i < bytes; ++i) {
    target[i] = static_cast<uint8_t>((target[i] & ~kInitialized) | (source[i] & kInitialized));
  }
}

}  // namespace baton::simt
