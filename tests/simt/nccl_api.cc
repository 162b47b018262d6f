// The calls of NCCL that the project uses, with the declarations of NCCL's own header.

#include <nccl.h>
#include <poll.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/simt/memory.h"
#include "tests/simt/nccl_api.h"
#include "tests/simt/nccl_comm.h"
#include "tests/simt/nccl_reduce.h"
#include "tests/simt/options.h"
#include "tests/simt/stream.h"
#include "tests/simt/touch.h"

namespace baton::simt {
namespace {

// A call of a group, before it is enqueued.
struct Call {
  ncclComm_t comm = nullptr;
  cudaStream_t stream = nullptr;
  NcclCall kind = NcclCall::kSendRecv;
  bool is_send = false;
  const void* send = nullptr;
  void* recv = nullptr;
  size_t bytes = 0;  // that one rank sends
  ncclDataType_t dtype = ncclInt8;
  ncclRedOp_t reduce = ncclSum;
  int peer = 0;  // or root
};

struct Group {
  int depth = 0;
  std::vector<Call> calls;
  std::vector<ncclComm_t> connecting;
};
thread_local Group group;
thread_local std::string last_error;

// The calls of one group on one communicator and stream, as one operation of the stream.
class Operation {
 public:
  Operation(std::shared_ptr<NcclComm> comm, std::vector<Call> calls)
      : comm_(std::move(comm)), calls_(std::move(calls)) {}

  // As Work says. Runs again for each launch of a graph it is part of.
  bool Run(uint32_t op) {
    if (!comm_->Enter(this)) {
      ReportFault({.kind = FaultKind::kCollective,
                   .what = "two operations of one communicator run at once: nothing orders their "
                           "streams",
                   .kernel = {},
                   .where = {}});
      return true;
    }
    const auto is_aborted = [this] { return comm_->state() == NcclComm::State::kAborted; };
    has_place_ = has_place_ || comm_->TakePlace();
    if (!has_place_ && !is_aborted()) return false;
    if (!has_begun_) Begin(op);
    if (!comm_->Progress(sends_, receives_)) return false;
    End(op, is_aborted());
    has_begun_ = false;
    if (std::exchange(has_place_, false)) comm_->LeavePlace();
    comm_->Leave();
    return true;
  }

 private:
  NcclFrame FrameOf(const Call& call, size_t bytes) const {
    NcclFrame frame;
    frame.call = static_cast<uint8_t>(call.kind);
    frame.dtype = static_cast<uint8_t>(call.dtype);
    frame.bytes = bytes;
    const bool reduces = call.kind == NcclCall::kAllReduce || call.kind == NcclCall::kReduceScatter;
    if (reduces) frame.reduce = static_cast<uint8_t>(call.reduce);
    if (call.kind == NcclCall::kBroadcast) frame.root = call.peer;
    return frame;
  }

  // What is sent is read now, and what is received is kept until the end: nobody sees half of it.
  void Begin(uint32_t op) {
    has_begun_ = true;
    sends_.clear();
    receives_.clear();
    buffers_.clear();
    const size_t ranks = static_cast<size_t>(comm_->ranks());
    for (const Call& call : calls_) {
      const bool is_pair = call.kind == NcclCall::kSendRecv;
      const bool sends =
          is_pair ? call.is_send : call.kind != NcclCall::kBroadcast || call.peer == comm_->rank();
      const size_t parts = call.kind == NcclCall::kReduceScatter ? ranks : 1;
      buffers_.emplace_back();
      Buffers& b = buffers_.back();
      if (sends) {
        if (!Touch(op, call.send, call.bytes * parts, /*write=*/false, "a message")) return;
        b.sent.resize(call.bytes * parts);
        std::memcpy(b.sent.data(), call.send, b.sent.size());
      }
      for (int peer = 0; peer < comm_->ranks(); ++peer) {
        if (is_pair && peer != call.peer) continue;
        const size_t part = parts > 1 ? static_cast<size_t>(peer) : 0;
        if (sends) {
          NcclTransfer t;
          t.peer = peer;
          t.frame = FrameOf(call, call.bytes);
          t.data = b.sent.data() + part * call.bytes;
          sends_.push_back(t);
        }
        const bool receives =
            is_pair ? !call.is_send : call.kind != NcclCall::kBroadcast || peer == call.peer;
        if (!receives) continue;
        b.received.emplace_back(call.bytes);
        NcclTransfer t;
        t.peer = peer;
        t.frame = FrameOf(call, call.bytes);
        t.data = b.received.back().data();
        receives_.push_back(t);
      }
    }
  }

  // Aborted, nobody can say what stands in the buffers: some of it may have come.
  void End(uint32_t op, bool is_aborted) {
    constexpr int kNoise = 0xA5;
    for (size_t i = 0; i < buffers_.size(); ++i) {
      const Call& call = calls_[i];
      const Buffers& b = buffers_[i];
      if (b.received.empty()) continue;
      const bool gathers = call.kind == NcclCall::kAllGather;
      const size_t bytes = call.bytes * (gathers ? b.received.size() : 1);
      if (!Touch(op, call.recv, bytes, /*write=*/true, "a message")) return;
      if (is_aborted) {
        std::memset(call.recv, kNoise, bytes);
      } else if (call.kind == NcclCall::kAllReduce || call.kind == NcclCall::kReduceScatter) {
        if (!Reduce(call.dtype, call.reduce == ncclMax, b.received, call.recv, call.bytes)) {
          RefuseNccl("a reduction of a data type that the emulation does not have");
          return;
        }
      } else {
        for (size_t rank = 0; rank < b.received.size(); ++rank) {
          std::memcpy(static_cast<char*>(call.recv) + rank * call.bytes, b.received[rank].data(),
                      call.bytes);
        }
      }
      static const char host = 0;
      CopyMarks(call.recv, &host, bytes);
    }
  }

  struct Buffers {
    std::vector<char> sent;
    std::vector<std::vector<char>> received;
  };

  const std::shared_ptr<NcclComm> comm_;
  const std::vector<Call> calls_;
  bool has_begun_ = false;
  bool has_place_ = false;
  std::deque<Buffers> buffers_;
  std::vector<NcclTransfer> sends_, receives_;
};

cudaError_t Enqueue(const std::shared_ptr<NcclComm>& comm, cudaStream_t stream,
                    std::vector<Call> calls) {
  auto operation = std::make_shared<Operation>(comm, std::move(calls));
  ++comm->pending;
  return Runtime::Get().Enqueue(stream, [operation, comm](uint32_t op) {
    if (!operation->Run(op)) return false;
    --comm->pending;
    return true;
  });
}

// As the real library may: the caller goes on, and the stream gets the calls later.
void EnqueueLater(const std::shared_ptr<NcclComm>& comm, cudaStream_t stream,
                  std::vector<Call> calls) {
  comm->launching = true;
  std::thread([comm, stream, calls = std::move(calls), device = Runtime::current_device()] {
    Runtime::current_device() = device;
    poll(nullptr, 0, 1);
    if (comm->state() != NcclComm::State::kAborted) (void)Enqueue(comm, stream, calls);
    comm->launching = false;
  }).detach();
}

ncclResult_t Flush() {
  std::vector<Call> calls = std::exchange(group.calls, {});
  ncclResult_t result = ncclSuccess;
  for (ncclComm_t comm : std::exchange(group.connecting, {})) {
    if (comm->blocking) comm->comm->AwaitConnected();
  }
  while (!calls.empty()) {
    // One operation for each communicator, on the stream of its calls.
    std::vector<Call> mine, others;
    for (Call& call : calls) (call.comm == calls[0].comm ? mine : others).push_back(call);
    const std::shared_ptr<NcclComm> comm = mine[0].comm->comm;
    const cudaStream_t stream = mine[0].stream;
    Runtime& runtime = Runtime::Get();
    if (!mine[0].comm->blocking && !runtime.IsCapturing(stream) && runtime.NextSeed() % 2 == 0) {
      EnqueueLater(comm, stream, std::move(mine));
      result = ncclInProgress;
    } else if (Enqueue(comm, stream, std::move(mine)) != cudaSuccess) {
      return ncclUnhandledCudaError;
    }
    calls = std::move(others);
  }
  return result;
}

ncclResult_t Add(const Call& call) {
  if (const ncclResult_t ready = CheckReady(call.comm); ready != ncclSuccess) return ready;
  const NcclComm& comm = *call.comm->comm;
  if (call.peer < 0 || call.peer >= comm.ranks()) {
    return RefuseNccl("rank " + std::to_string(call.peer) + " of " + std::to_string(comm.ranks()));
  }
  if (call.stream == nullptr) return RefuseNccl("a call on the default stream");
  if (DTypeBytes(call.dtype) == 0) return RefuseNccl("an unknown data type");
  for (const void* buffer : {call.send, static_cast<const void*>(call.recv)}) {
    if (buffer == nullptr || call.bytes == 0 || Memory::Get().Contains(buffer)) continue;
    return RefuseNccl("a buffer in the host's pageable memory");
  }
  for (const Call& other : group.calls) {
    if (other.comm == call.comm && other.stream != call.stream) {
      return RefuseNccl("calls of one group and communicator on two streams");
    }
  }
  group.calls.push_back(call);
  return group.depth > 0 ? ncclSuccess : Flush();
}

std::string IdText(const ncclUniqueId& id) { return std::string(id.internal, 32); }

}  // namespace

ncclResult_t RefuseNccl(const std::string& why) {
  last_error = why;
  ReportFault({.kind = FaultKind::kCollective, .what = why, .kernel = {}, .where = {}});
  return ncclInvalidUsage;
}

ncclResult_t CheckReady(ncclComm_t handle) {
  if (handle == nullptr) return RefuseNccl("a call without a communicator");
  const NcclComm& comm = *handle->comm;
  if (comm.state() == NcclComm::State::kConnecting) {
    return RefuseNccl("a call on a communicator that is not ready yet");
  }
  if (comm.state() != NcclComm::State::kReady) return ncclRemoteError;
  if (comm.launching) return RefuseNccl("a call on a communicator that is still in progress");
  return ncclSuccess;
}

bool InNcclGroup() { return group.depth > 0; }

}  // namespace baton::simt

using baton::simt::Add;
using baton::simt::Call;
using baton::simt::DTypeBytes;
using baton::simt::NcclCall;
using baton::simt::NcclComm;

extern "C" {

ncclResult_t ncclGetVersion(int* version) {
  *version = baton::simt::GetOptions().nccl_version;
  return ncclSuccess;
}
const char* ncclGetErrorString(ncclResult_t result) {
  const char* const names[] = {"no error",       "unhandled CUDA error", "unhandled system error",
                               "internal error", "invalid argument",     "invalid usage",
                               "remote error",   "in progress"};
  return result >= 0 && result < 8 ? names[result] : "unknown result code";
}
const char* ncclGetLastError(ncclComm_t comm) {
  if (comm != nullptr && !comm->comm->error().empty()) return comm->comm->error().c_str();
  return baton::simt::last_error.c_str();
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  std::random_device random;
  *id = {};
  const char digits[] = "0123456789abcdef";
  for (int i = 0; i < 32; ++i) id->internal[i] = digits[random() % 16];
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  if (ranks < 1 || rank < 0 || rank >= ranks) {
    return baton::simt::RefuseNccl("rank " + std::to_string(rank) + " of " + std::to_string(ranks));
  }
  *comm = new ncclComm;
  (*comm)->blocking = config == nullptr || config->blocking != 0;
  (*comm)->comm = std::make_shared<NcclComm>(baton::simt::IdText(id), ranks, rank,
                                             baton::simt::Runtime::current_device());
  if (baton::simt::group.depth > 0) {
    baton::simt::group.connecting.push_back(*comm);
    return ncclSuccess;
  }
  if (!(*comm)->blocking) return ncclInProgress;
  (*comm)->comm->AwaitConnected();
  return (*comm)->comm->state() == NcclComm::State::kReady ? ncclSuccess : ncclRemoteError;
}
ncclResult_t ncclCommInitRank(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank) {
  return ncclCommInitRankConfig(comm, ranks, id, rank, nullptr);
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
  switch (comm->comm->state()) {
    case NcclComm::State::kConnecting:
      *error = ncclInProgress;
      break;
    case NcclComm::State::kReady:
      *error = comm->comm->launching ? ncclInProgress : ncclSuccess;
      break;
    case NcclComm::State::kPeerLost:
      *error = ncclRemoteError;
      break;
    case NcclComm::State::kAborted:
    case NcclComm::State::kFailed:
      *error = ncclInvalidUsage;
      break;
  }
  return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t) { return ncclSuccess; }

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  if (comm->comm->pending > 0 || comm->comm->one_sided_pending > 0 || comm->comm->launching) {
    return baton::simt::RefuseNccl("a communicator was destroyed while operations are under way");
  }
  delete comm;
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  comm->comm->Abort();
  while (comm->comm->launching) std::this_thread::yield();
  // Its operations leave the streams by themselves now.
  while (comm->comm->pending > 0 && baton::simt::Runtime::Get().failure() == cudaSuccess) {
    std::this_thread::yield();
  }
  delete comm;
  return ncclSuccess;
}

ncclResult_t ncclCommCount(const ncclComm_t comm, int* count) {
  *count = comm->comm->ranks();
  return ncclSuccess;
}
ncclResult_t ncclCommUserRank(const ncclComm_t comm, int* rank) {
  *rank = comm->comm->rank();
  return ncclSuccess;
}
ncclResult_t ncclCommCuDevice(const ncclComm_t comm, int* device) {
  *device = comm->comm->device();
  return ncclSuccess;
}

ncclResult_t ncclGroupStart() {
  ++baton::simt::group.depth;
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  if (baton::simt::group.depth == 0) return baton::simt::RefuseNccl("ncclGroupEnd without a group");
  return --baton::simt::group.depth > 0 ? ncclSuccess : baton::simt::Flush();
}

ncclResult_t ncclSend(const void* send, size_t count, ncclDataType_t dtype, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  return Add({.comm = comm,
              .stream = stream,
              .is_send = true,
              .send = send,
              .bytes = count * DTypeBytes(dtype),
              .dtype = dtype,
              .peer = peer});
}
ncclResult_t ncclRecv(void* recv, size_t count, ncclDataType_t dtype, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return Add({.comm = comm,
              .stream = stream,
              .recv = recv,
              .bytes = count * DTypeBytes(dtype),
              .dtype = dtype,
              .peer = peer});
}
ncclResult_t ncclAllReduce(const void* send, void* recv, size_t count, ncclDataType_t dtype,
                           ncclRedOp_t reduce, ncclComm_t comm, cudaStream_t stream) {
  return Add({.comm = comm,
              .stream = stream,
              .kind = NcclCall::kAllReduce,
              .send = send,
              .recv = recv,
              .bytes = count * DTypeBytes(dtype),
              .dtype = dtype,
              .reduce = reduce});
}
ncclResult_t ncclReduceScatter(const void* send, void* recv, size_t count, ncclDataType_t dtype,
                               ncclRedOp_t reduce, ncclComm_t comm, cudaStream_t stream) {
  return Add({.comm = comm,
              .stream = stream,
              .kind = NcclCall::kReduceScatter,
              .send = send,
              .recv = recv,
              .bytes = count * DTypeBytes(dtype),
              .dtype = dtype,
              .reduce = reduce});
}
ncclResult_t ncclAllGather(const void* send, void* recv, size_t count, ncclDataType_t dtype,
                           ncclComm_t comm, cudaStream_t stream) {
  return Add({.comm = comm,
              .stream = stream,
              .kind = NcclCall::kAllGather,
              .send = send,
              .recv = recv,
              .bytes = count * DTypeBytes(dtype),
              .dtype = dtype});
}
ncclResult_t ncclBroadcast(const void* send, void* recv, size_t count, ncclDataType_t dtype,
                           int root, ncclComm_t comm, cudaStream_t stream) {
  return Add({.comm = comm,
              .stream = stream,
              .kind = NcclCall::kBroadcast,
              .send = send,
              .recv = recv,
              .bytes = count * DTypeBytes(dtype),
              .dtype = dtype,
              .peer = root});
}

}  // extern "C"
