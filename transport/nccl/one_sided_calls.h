#ifndef BATON_TRANSPORT_NCCL_ONE_SIDED_CALLS_H_
#define BATON_TRANSPORT_NCCL_ONE_SIDED_CALLS_H_

// NCCL's one-sided calls. The header that the project is compiled with has only some of them and
// the library that is there may have none, so all are looked up when the program runs.

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <cstddef>

#include "absl/status/statusor.h"

namespace baton::transport {

// How many signals of a rank a wait is for, beyond those that earlier waits were for. As NCCL lays
// it out.
struct NcclSignalCount {
  int signals = 0;
  int peer = 0;
  int signal_index = 0;  // NCCL takes 0 only, here and below
  int context = 0;
};

// As named in NCCL's documentation; errors as of its other calls.
struct OneSidedCalls {
  // Memory of the calling thread's GPU that can be registered.
  ncclResult_t (*mem_alloc)(void** pointer, size_t bytes) = nullptr;
  ncclResult_t (*mem_free)(void* pointer) = nullptr;
  // All ranks together. `window` is written when the communicator is no longer in progress; null
  // then: these ranks cannot have windows.
  ncclResult_t (*window_register)(ncclComm_t comm, void* memory, size_t bytes, ncclWindow_t* window,
                                  int flags) = nullptr;
  // Where this rank's GPU reaches the peer's part of a window; null: it does not.
  ncclResult_t (*peer_pointer)(ncclWindow_t window, size_t offset, int peer,
                               void** pointer) = nullptr;
  ncclResult_t (*signal)(int peer, int signal_index, int context, unsigned flags, ncclComm_t comm,
                         cudaStream_t stream) = nullptr;
  // `from` lies in a window of this communicator, too.
  ncclResult_t (*put_signal)(const void* from, size_t count, ncclDataType_t type, int peer,
                             ncclWindow_t to, size_t offset, int signal_index, int context,
                             unsigned flags, ncclComm_t comm, cudaStream_t stream) = nullptr;
  ncclResult_t (*wait_signal)(int counts, NcclSignalCount* count, ncclComm_t comm,
                              cudaStream_t stream) = nullptr;
};

// FAILED_PRECONDITION, with the release that is there, where it is not one of those whose way of
// putting is known (README.md).
absl::StatusOr<OneSidedCalls> FindOneSidedCalls();

// A function of the NCCL that this program runs with, by name; null when it has none. Defined where
// the library is opened, or emulated.
void* FindNcclFunction(const char* name);

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_NCCL_ONE_SIDED_CALLS_H_
