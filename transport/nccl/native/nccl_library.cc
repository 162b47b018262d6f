#include "transport/nccl/native/nccl_library.h"

#include <nccl.h>

#include "base/shared_library.h"
#include "transport/nccl/one_sided_calls.h"

// What the project calls, each with the parameters that nccl.h gives it (the compiler compares).
#define BATON_NCCL_FUNCTIONS(V)                                                              \
  V(ncclGetVersion, (int* version), (version))                                               \
  V(ncclGetUniqueId, (ncclUniqueId * id), (id))                                              \
  V(ncclCommInitRankConfig,                                                                  \
    (ncclComm_t * comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t* config),         \
    (comm, ranks, id, rank, config))                                                         \
  V(ncclCommInitRank, (ncclComm_t * comm, int ranks, ncclUniqueId id, int rank),             \
    (comm, ranks, id, rank))                                                                 \
  V(ncclCommGetAsyncError, (ncclComm_t comm, ncclResult_t * error), (comm, error))           \
  V(ncclCommFinalize, (ncclComm_t comm), (comm))                                             \
  V(ncclCommDestroy, (ncclComm_t comm), (comm))                                              \
  V(ncclCommAbort, (ncclComm_t comm), (comm))                                                \
  V(ncclCommCount, (const ncclComm_t comm, int* count), (comm, count))                       \
  V(ncclCommUserRank, (const ncclComm_t comm, int* rank), (comm, rank))                      \
  V(ncclCommCuDevice, (const ncclComm_t comm, int* device), (comm, device))                  \
  V(ncclGroupStart, (), ())                                                                  \
  V(ncclGroupEnd, (), ())                                                                    \
  V(ncclSend,                                                                                \
    (const void* send, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,         \
     cudaStream_t stream),                                                                   \
    (send, count, type, peer, comm, stream))                                                 \
  V(ncclRecv,                                                                                \
    (void* receive, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,            \
     cudaStream_t stream),                                                                   \
    (receive, count, type, peer, comm, stream))                                              \
  V(ncclAllReduce,                                                                           \
    (const void* send, void* receive, size_t count, ncclDataType_t type, ncclRedOp_t reduce, \
     ncclComm_t comm, cudaStream_t stream),                                                  \
    (send, receive, count, type, reduce, comm, stream))                                      \
  V(ncclReduceScatter,                                                                       \
    (const void* send, void* receive, size_t count, ncclDataType_t type, ncclRedOp_t reduce, \
     ncclComm_t comm, cudaStream_t stream),                                                  \
    (send, receive, count, type, reduce, comm, stream))                                      \
  V(ncclAllGather,                                                                           \
    (const void* send, void* receive, size_t count, ncclDataType_t type, ncclComm_t comm,    \
     cudaStream_t stream),                                                                   \
    (send, receive, count, type, comm, stream))                                              \
  V(ncclBroadcast,                                                                           \
    (const void* send, void* receive, size_t count, ncclDataType_t type, int root,           \
     ncclComm_t comm, cudaStream_t stream),                                                  \
    (send, receive, count, type, root, comm, stream))

namespace baton::transport {
namespace {

// The file that the build found, behind what the dynamic linker finds.
constexpr const char* kNames[] = {"libnccl.so.2", BATON_NCCL_LIBRARY};

// Of the process, as the functions below belong to no object. Never destroyed: threads may still
// end communicators.
const SharedLibrary& Nccl() {
  static const auto* const library =
      new SharedLibrary(kNames, "install NCCL 2 for CUDA 13 (Debian package libnccl2)");
  return *library;
}

template <typename Function>
Function* Find(const char* name) {
  return reinterpret_cast<Function*>(Nccl().Find(name));
}

}  // namespace

absl::Status LoadNccl() {
#define BATON_NAME(function, parameters, arguments) #function,
  static constexpr const char* kFunctions[] = {
      BATON_NCCL_FUNCTIONS(BATON_NAME) "ncclGetErrorString", "ncclGetLastError"};
#undef BATON_NAME
  return Nccl().Has(kFunctions);
}

// What only some releases have (one_sided_calls.h).
void* FindNcclFunction(const char* name) { return Nccl().Find(name); }

}  // namespace baton::transport

using baton::transport::Find;
using baton::transport::Nccl;

extern "C" {

#define BATON_FORWARD(function, parameters, arguments)             \
  ncclResult_t function parameters {                               \
    static auto* const real = Find<decltype(function)>(#function); \
    return real == nullptr ? ncclSystemError : real arguments;     \
  }
BATON_NCCL_FUNCTIONS(BATON_FORWARD)

const char* ncclGetErrorString(ncclResult_t result) {
  static auto* const real = Find<decltype(ncclGetErrorString)>("ncclGetErrorString");
  if (real != nullptr) return real(result);
  static const auto* const why = new std::string(Nccl().status().message());
  return why->c_str();
}

const char* ncclGetLastError(ncclComm_t comm) {
  static auto* const real = Find<decltype(ncclGetLastError)>("ncclGetLastError");
  return real == nullptr ? "" : real(comm);
}

}  // extern "C"
