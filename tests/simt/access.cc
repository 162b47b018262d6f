// Every load and store of a kernel. The .cu files are compiled with -fsanitize=thread, for which
// the compiler calls the functions below; ThreadSanitizer's own library is not linked. Calls from
// outside of a kernel (the host's side of a .cu file) count for nothing.

#include <cstddef>

#include "tests/simt/block.h"

namespace {

inline void OnAccess(const void* address, int bytes, bool write, bool may_be_unaligned,
                     const void* site) {
  baton::simt::BlockRunner* const runner = baton::simt::BlockRunner::Current();
  if (runner != nullptr) runner->Access(address, bytes, write, may_be_unaligned, site);
}

inline void OnRange(const void* address, size_t bytes, bool write, const void* site) {
  baton::simt::BlockRunner* const runner = baton::simt::BlockRunner::Current();
  if (runner == nullptr) return;
  const char* at = static_cast<const char*>(address);
  for (; bytes > 0;) {
    const size_t part = bytes < 16 ? bytes : 16;
    runner->Access(at, static_cast<int>(part), write, /*may_be_unaligned=*/true, site);
    at += part;
    bytes -= part;
  }
}

}  // namespace

// Names and signatures are the compiler's.
extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

#define BATON_SIMT_ACCESS(bytes)                                         \
  void __tsan_read##bytes(void* address) {                               \
    OnAccess(address, bytes, false, false, __builtin_return_address(0)); \
  }                                                                      \
  void __tsan_write##bytes(void* address) {                              \
    OnAccess(address, bytes, true, false, __builtin_return_address(0));  \
  }                                                                      \
  void __tsan_unaligned_read##bytes(void* address) {                     \
    OnAccess(address, bytes, false, true, __builtin_return_address(0));  \
  }                                                                      \
  void __tsan_unaligned_write##bytes(void* address) {                    \
    OnAccess(address, bytes, true, true, __builtin_return_address(0));   \
  }
BATON_SIMT_ACCESS(1)
BATON_SIMT_ACCESS(2)
BATON_SIMT_ACCESS(4)
BATON_SIMT_ACCESS(8)
BATON_SIMT_ACCESS(16)
#undef BATON_SIMT_ACCESS

void __tsan_read_range(void* address, size_t bytes) {
  OnRange(address, bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
  OnRange(address, bytes, true, __builtin_return_address(0));
}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

}  // extern "C"
