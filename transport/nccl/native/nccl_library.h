#ifndef BATON_TRANSPORT_NCCL_NATIVE_NCCL_LIBRARY_H_
#define BATON_TRANSPORT_NCCL_NATIVE_NCCL_LIBRARY_H_

// NCCL's functions, of a shared library that is opened by the first call of one of them: a program
// with this file in place of the library starts on machines without it, and there each call fails
// with ncclSystemError, whose text says what is missing.

#include "absl/status/status.h"

namespace baton::transport {

// That the library is there and has every function that the project calls; else
// FAILED_PRECONDITION with the fix.
absl::Status LoadNccl();

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_NCCL_NATIVE_NCCL_LIBRARY_H_
