#ifndef BATON_TESTS_SIMT_TOUCH_H_
#define BATON_TESTS_SIMT_TOUCH_H_

// Memory that operations of streams use which are no kernels: copies, fills, messages.

#include <cstddef>
#include <cstdint>

namespace baton::simt {

// Checks that operation `op` may use the range, and notes that it writes it. After a fault, which
// it reports, false. `what`: "a copy". Memory of the host counts for nothing.
bool Touch(uint32_t op, const void* address, size_t bytes, bool write, const char* what);

// Behind a copy of the bytes: what is initialized of `from` is so of `to`.
void CopyMarks(void* to, const void* from, size_t bytes);

}  // namespace baton::simt

#endif  // BATON_TESTS_SIMT_TOUCH_H_
