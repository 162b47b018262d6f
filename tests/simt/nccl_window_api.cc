// NCCL's one-sided calls, with own declarations: the header is older. They are found by name only
// (FindNcclFunction), and by a program whose options say that the release has them.
//
// As in the real library the first signal, put or wait of a communicator waits for the first one of
// every other rank; a put waits for nobody; and a wait ends with the signals alone: an abort leaves
// it, and its stream, where they are.

#include <nccl.h>
#include <poll.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include "tests/simt/memory.h"
#include "tests/simt/nccl_api.h"
#include "tests/simt/nccl_window.h"
#include "tests/simt/options.h"
#include "tests/simt/stream.h"
#include "tests/simt/touch.h"
#include "transport/nccl/one_sided_calls.h"

namespace baton::simt {
namespace {

using transport::NcclSignalCount;

// What a put copies before the device turns to something else.
constexpr size_t kPutBytes = size_t{64} << 10;

// These two may wait for all that runs on the device, as the driver's calls in them may.
ncclResult_t MemAlloc(void** pointer, size_t bytes) {
  (void)Runtime::Get().SynchronizeDevice();
  *pointer = WindowMemory::Allocate(bytes, Runtime::current_device());
  return *pointer == nullptr ? ncclUnhandledCudaError : ncclSuccess;
}

ncclResult_t MemFree(void* pointer) {
  (void)Runtime::Get().SynchronizeDevice();
  if (WindowMemory::Free(pointer)) return ncclSuccess;
  return RefuseNccl("ncclMemFree of what ncclMemAlloc has not given");
}

// Something that all ranks do together: now, or, as the real library does, on a thread of its own.
ncclResult_t DoTogether(ncclComm_t handle, std::function<bool()> work) {
  const std::shared_ptr<NcclComm> comm = handle->comm;
  if (comm->pending > 0 || comm->one_sided_pending > 0) {
    return RefuseNccl("a window is registered while operations of the communicator are under way");
  }
  if (handle->blocking) return work() ? ncclSuccess : ncclRemoteError;
  comm->launching = true;
  std::thread([comm, work = std::move(work), device = Runtime::current_device()] {
    Runtime::current_device() = device;
    (void)work();
    comm->launching = false;
  }).detach();
  return ncclInProgress;
}

ncclResult_t WindowRegister(ncclComm_t handle, void* memory, size_t bytes, ncclWindow_t* window,
                            int flags) {
  *window = nullptr;
  if (const ncclResult_t ready = CheckReady(handle); ready != ncclSuccess) return ready;
  if (InNcclGroup()) return RefuseNccl("ncclCommWindowRegister in a group");
  if (!GetOptions().nccl_windows) return ncclSuccess;
  const std::shared_ptr<SharedMemory> block = WindowMemory::Find(memory);
  if (block == nullptr) {
    return RefuseNccl("a window of memory that is not from ncclMemAlloc: " +
                      Memory::Get().Describe(memory));
  }
  if (bytes == 0 || bytes > block->bytes()) {
    return RefuseNccl("a window of " + std::to_string(bytes) + " bytes of " +
                      std::to_string(block->bytes()));
  }
  return DoTogether(handle, [comm = handle->comm, memory, bytes, window, flags] {
    *window = comm->one_sided().Register(memory, bytes, flags);
    return *window != nullptr;
  });
}

ncclResult_t PeerPointer(ncclWindow_t window, size_t offset, int peer, void** pointer) {
  *pointer = nullptr;
  if (window == nullptr || offset >= window->bytes) return ncclInvalidArgument;
  if (peer < 0 || static_cast<size_t>(peer) >= window->parts.size()) return ncclInvalidArgument;
  if (GetOptions().nccl_apart) return ncclSuccess;
  const auto& part = window->parts[static_cast<size_t>(peer)];
  *pointer = part == nullptr ? window->own + offset : part->data() + offset;
  return ncclSuccess;
}

// A put or a wait on its way to the stream.
ncclResult_t Launch(ncclComm_t handle, cudaStream_t stream, Work work) {
  const std::shared_ptr<NcclComm> comm = handle->comm;
  const auto enqueue = [comm, stream, work = std::move(work)] {
    if (!comm->one_sided().EnsureSignals()) return false;
    ++comm->one_sided_pending;
    return Runtime::Get().Enqueue(stream, [comm, work](uint32_t op) {
      // Its stream's operations only follow each other; another stream's might meet it.
      if (!work(op)) return false;
      --comm->one_sided_pending;
      return true;
    }) == cudaSuccess;
  };
  if (!comm->one_sided().has_signals()) return DoTogether(handle, enqueue);
  if (handle->blocking || Runtime::Get().NextSeed() % 2 == 0) {
    return enqueue() ? ncclSuccess : ncclUnhandledCudaError;
  }
  comm->launching = true;
  std::thread([comm, enqueue, device = Runtime::current_device()] {
    Runtime::current_device() = device;
    poll(nullptr, 0, 1);
    (void)enqueue();
    comm->launching = false;
  }).detach();
  return ncclInProgress;
}

ncclResult_t CheckCall(ncclComm_t handle, int peer, int index, int context, unsigned flags,
                       cudaStream_t stream) {
  if (const ncclResult_t ready = CheckReady(handle); ready != ncclSuccess) return ready;
  if (InNcclGroup()) return RefuseNccl("one-sided calls in a group, which the project has none of");
  const int ranks = handle->comm->ranks();
  if (peer < 0 || peer >= ranks || peer == handle->comm->rank()) {
    return RefuseNccl("rank " + std::to_string(peer) + " of " + std::to_string(ranks) +
                      " is no peer");
  }
  if (index != 0 || context != 0 || flags != 0) {
    return RefuseNccl("a signal, context or flags other than 0");
  }
  if (stream == nullptr) return RefuseNccl("a call on the default stream");
  if (!GetOptions().nccl_windows) return ncclInvalidArgument;
  if (!GetOptions().nccl_apart) return ncclSuccess;
  return RefuseNccl(
      "one-sided calls between hosts: the stream would wait for the network, which "
      "no abort ends");
}

ncclResult_t PutSignal(const void* from, size_t count, ncclDataType_t type, int peer,
                       ncclWindow_t to, size_t offset, int index, int context, unsigned flags,
                       ncclComm_t handle, cudaStream_t stream) {
  const ncclResult_t checked = CheckCall(handle, peer, index, context, flags, stream);
  if (checked != ncclSuccess) return checked;
  if (type != ncclInt8 && type != ncclUint8) return RefuseNccl("a put of other than bytes");
  const std::shared_ptr<NcclComm> comm = handle->comm;
  if (!comm->one_sided().Owns(to)) return RefuseNccl("a put to no window of this communicator");
  if (offset > to->bytes || count > to->bytes - offset) {
    return RefuseNccl("a put of " + std::to_string(count) + " bytes to byte " +
                      std::to_string(offset) + " of a window of " + std::to_string(to->bytes));
  }
  if (comm->one_sided().Holding(from, count) == nullptr) {
    return RefuseNccl("a put from " + Memory::Get().Describe(from) +
                      ", which is in no window of this communicator");
  }
  return Launch(handle, stream,
                [comm, from, count, peer, to, offset, done = size_t{0}](uint32_t op) mutable {
                  if (done == 0 && !Touch(op, from, count, /*write=*/false, "a put")) return true;
                  if (done > 0 && HeldPuts() == comm->device()) return false;
                  const size_t part = std::min(kPutBytes, count - done);
                  std::memcpy(to->parts[static_cast<size_t>(peer)]->data() + offset + done,
                              static_cast<const char*>(from) + done, part);
                  done += part;
                  if (done < count) return false;
                  comm->one_sided().Signal(peer, to, offset, count);
                  return true;
                });
}

ncclResult_t Signal(int peer, int index, int context, unsigned flags, ncclComm_t handle,
                    cudaStream_t stream) {
  const ncclResult_t checked = CheckCall(handle, peer, index, context, flags, stream);
  if (checked != ncclSuccess) return checked;
  return Launch(handle, stream, [comm = handle->comm, peer](uint32_t) {
    comm->one_sided().Signal(peer, nullptr, 0, 0);
    return true;
  });
}

ncclResult_t WaitSignal(int counts, NcclSignalCount* count, ncclComm_t handle,
                        cudaStream_t stream) {
  if (counts != 1 || count->signals < 1) {
    return RefuseNccl("a wait for other than signals of one rank");
  }
  const ncclResult_t checked =
      CheckCall(handle, count->peer, count->signal_index, count->context, 0, stream);
  if (checked != ncclSuccess) return checked;
  const std::shared_ptr<NcclComm> comm = handle->comm;
  return Launch(handle, stream,
                [comm, peer = count->peer, more = static_cast<uint64_t>(count->signals),
                 until = uint64_t{0}](uint32_t op) mutable {
                  NcclOneSided& one_sided = comm->one_sided();
                  if (until == 0) until = one_sided.awaited[static_cast<size_t>(peer)] += more;
                  if (one_sided.SignalsOf(peer) < until) return false;
                  // Of what was given up nothing is known.
                  const bool is_aborted = comm->state() == NcclComm::State::kAborted;
                  if (!is_aborted) one_sided.Accept(op, peer, until);
                  return true;
                });
}

}  // namespace
}  // namespace baton::simt

namespace baton::transport {

void* FindNcclFunction(const char* name) {
  const int version = simt::GetOptions().nccl_version;
  const auto as_address = [](auto* function) { return reinterpret_cast<void*>(function); };
  struct Known {
    std::string_view name;
    int since;
    void* function;
  };
  const Known known[] = {
      {"ncclMemAlloc", 21903, as_address(&simt::MemAlloc)},
      {"ncclMemFree", 21903, as_address(&simt::MemFree)},
      {"ncclCommWindowRegister", 22703, as_address(&simt::WindowRegister)},
      {"ncclGetPeerDevicePointer", 22902, as_address(&simt::PeerPointer)},
      {"ncclSignal", 22902, as_address(&simt::Signal)},
      {"ncclPutSignal", 22902, as_address(&simt::PutSignal)},
      {"ncclWaitSignal", 22902, as_address(&simt::WaitSignal)},
  };
  for (const Known& one : known) {
    if (one.name == name && version >= one.since) return one.function;
  }
  return nullptr;
}

}  // namespace baton::transport
