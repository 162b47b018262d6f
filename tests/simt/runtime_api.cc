// The calls of CUDA's runtime that the project uses, with the declarations of CUDA's own header, on
// the emulated devices of stream.h.

#include <cuda_runtime_api.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <sstream>
#include <vector>

#include "tests/simt/block.h"
#include "tests/simt/launch.h"
#include "tests/simt/memory.h"
#include "tests/simt/stream.h"
#include "tests/simt/tensor_map.h"
#include "tests/simt/touch.h"

namespace baton::simt {
namespace {

thread_local cudaError_t last_error = cudaSuccess;

cudaError_t Answer(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
  return error;
}

bool IsPinnedOrDevice(const void* address) { return Memory::Get().Contains(address); }

struct Rows {
  size_t to_pitch = 0, from_pitch = 0, width = 0, height = 1;
  size_t bytes() const { return width * height; }
};

void RunCopy(uint32_t op, void* to, const void* from, const Rows& rows) {
  for (size_t row = 0; row < rows.height; ++row) {
    char* const target = static_cast<char*>(to) + row * rows.to_pitch;
    const char* const source = static_cast<const char*>(from) + row * rows.from_pitch;
    if (!Touch(op, source, rows.width, /*write=*/false, "a copy") ||
        !Touch(op, target, rows.width, /*write=*/true, "a copy")) {
      return;
    }
    std::memmove(target, source, rows.width);
    CopyMarks(target, source, rows.width);
  }
}

cudaError_t Copy(void* to, const void* from, const Rows& rows, cudaStream_t stream) {
  if (rows.bytes() == 0) return cudaSuccess;
  Runtime& runtime = Runtime::Get();
  if (!IsPinnedOrDevice(from)) {
    // The host may use pageable memory again as soon as the call returns.
    auto staged = std::make_shared<std::vector<char>>(rows.bytes());
    for (size_t row = 0; row < rows.height; ++row) {
      std::memcpy(staged->data() + row * rows.width,
                  static_cast<const char*>(from) + row * rows.from_pitch, rows.width);
    }
    Rows packed = rows;
    packed.from_pitch = rows.width;
    return runtime.Enqueue(stream, [to, staged, packed](uint32_t op) {
      RunCopy(op, to, staged->data(), packed);
      return true;
    });
  }
  const bool to_pageable = !IsPinnedOrDevice(to);
  if (to_pageable && runtime.IsCapturing(stream)) {
    return runtime.Misuse("a captured copy to pageable memory", cudaErrorStreamCaptureUnsupported);
  }
  if (!to_pageable && Memory::Get().Find(to).kind == MemoryKind::kPinned) {
    // Whoever reads it before the copy is done finds nothing that looks like an answer.
    for (size_t row = 0; row < rows.height; ++row) {
      std::memset(static_cast<char*>(to) + row * rows.to_pitch, 0xCB, rows.width);
    }
  }
  const cudaError_t status = runtime.Enqueue(stream, [to, from, rows](uint32_t op) {
    RunCopy(op, to, from, rows);
    return true;
  });
  if (status != cudaSuccess || !to_pageable) return status;
  return runtime.Synchronize(stream);
}

cudaError_t Fill(void* to, int value, size_t bytes, cudaStream_t stream) {
  return Runtime::Get().Enqueue(stream, [to, value, bytes](uint32_t op) {
    if (!Touch(op, to, bytes, /*write=*/true, "a fill")) return true;
    std::memset(to, value, bytes);
    Memory::Get().AddMark(to, bytes, kInitialized);
    return true;
  });
}

cudaError_t Allocate(void** out, size_t bytes, MemoryKind kind) {
  Runtime& runtime = Runtime::Get();
  if (runtime.failure() != cudaSuccess) return runtime.failure();
  const int device = Runtime::current_device();
  const Memory& memory = Memory::Get();
  if (kind == MemoryKind::kDevice &&
      memory.allocated_bytes(device) + bytes > runtime.options().device_bytes) {
    return cudaErrorMemoryAllocation;
  }
  *out = bytes == 0 ? nullptr : Memory::Get().Allocate(bytes, kind, device);
  // What the host writes to its own memory is not seen here.
  if (kind == MemoryKind::kPinned && *out != nullptr) memory.AddMark(*out, bytes, kInitialized);
  return *out == nullptr && bytes > 0 ? cudaErrorMemoryAllocation : cudaSuccess;
}

// Of memory that no operation uses any more.
cudaError_t Forget(void* data, MemoryKind kind) {
  Runtime& runtime = Runtime::Get();
  Memory& memory = Memory::Get();
  const Allocation allocation = memory.Find(data);
  if (allocation.data != data || allocation.kind != kind) {
    return runtime.Misuse("cudaFree of " + memory.Describe(data), cudaErrorInvalidValue);
  }
  if (uint32_t* const writers = runtime.options().check_races ? memory.WordTable() : nullptr) {
    const size_t words = (allocation.bytes + 3) / 4;
    std::fill_n(writers + memory.Word(data), words, 0);
  }
  memory.Free(data);
  return cudaSuccess;
}

cudaError_t Release(void* data, MemoryKind kind) {
  if (data == nullptr) return cudaSuccess;
  Runtime& runtime = Runtime::Get();
  // As CUDA's, it waits for whatever may use the memory.
  runtime.SynchronizeDevice();
  return Forget(data, kind);
}

// Other streams may use the memory of `out` only behind this one: what is not initialized says so
// where they do not.
cudaError_t AllocateInOrder(void** out, size_t bytes, cudaStream_t stream) {
  Runtime& runtime = Runtime::Get();
  if (runtime.IsCapturing(stream)) {
    return runtime.Misuse("memory taken in a stream that captures",
                          cudaErrorStreamCaptureUnsupported);
  }
  return Allocate(out, bytes, MemoryKind::kDevice);
}

cudaError_t ReleaseInOrder(void* data, cudaStream_t stream) {
  Runtime& runtime = Runtime::Get();
  if (runtime.IsCapturing(stream)) {
    return runtime.Misuse("memory given back in a stream that captures",
                          cudaErrorStreamCaptureUnsupported);
  }
  if (data == nullptr) return cudaSuccess;
  return runtime.Enqueue(stream, [data](uint32_t) {
    (void)Forget(data, MemoryKind::kDevice);
    return true;
  });
}

std::string LaunchProblem(dim3 grid, int threads, size_t shared_bytes, int major) {
  std::ostringstream out;
  const size_t most_shared = major == 8 ? 99 * 1024 : 227 * 1024;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) {
    out << "a grid of " << grid.x << " x " << grid.y << " x " << grid.z << " blocks";
  } else if (threads <= 0 || threads > 1024 || threads % 32 != 0) {
    out << "blocks of " << threads << " threads; expected a multiple of 32, at most 1024";
  } else if (shared_bytes > most_shared) {
    out << shared_bytes << " bytes of shared memory; this device has " << most_shared;
  }
  return out.str();
}

}  // namespace

cudaError_t calls::LaunchKernel(const void* kernel, Invoke invoke, const void* args,
                                size_t args_bytes, dim3 grid, int threads, size_t shared_bytes,
                                cudaStream_t stream) {
  Runtime& runtime = Runtime::Get();
  const Options options = runtime.options();
  const std::string problem = LaunchProblem(grid, threads, shared_bytes, options.compute_major);
  if (!problem.empty()) {
    ReportFault({.kind = FaultKind::kBadLaunch,
                 .what = problem,
                 .kernel = FunctionName(kernel),
                 .where = {}});
    return Answer(cudaErrorInvalidConfiguration);
  }
  if (stream == nullptr) {
    return Answer(runtime.Misuse("a launch of " + FunctionName(kernel) +
                                     " into the default stream, which waits for no other",
                                 cudaErrorInvalidResourceHandle));
  }
  const auto* const bytes = static_cast<const std::byte*>(args);
  const std::vector<std::byte> copied(bytes, bytes + args_bytes);
  return Answer(runtime.Enqueue(stream, [=](uint32_t op) {
    Runtime& running = Runtime::Get();
    const Options now = running.options();
    RaceMap races;
    Grid job;
    job.kernel = kernel;
    job.invoke = invoke;
    job.args = copied;
    job.blocks[0] = static_cast<int>(grid.x);
    job.blocks[1] = static_cast<int>(grid.y);
    job.blocks[2] = static_cast<int>(grid.z);
    job.threads = threads;
    job.shared_bytes = shared_bytes;
    job.seed = running.NextSeed();
    job.check_memory = now.check_memory;
    job.races = now.check_races ? &races : nullptr;
    job.op = op;
    running.RunGrid(job);
    return true;
  }));
}

}  // namespace baton::simt

using baton::simt::Answer;
using baton::simt::MemoryKind;
using baton::simt::Runtime;

extern "C" {

// --- errors

cudaError_t cudaGetLastError() { return std::exchange(baton::simt::last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return baton::simt::last_error; }
const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInvalidResourceHandle:
      return "cudaErrorInvalidResourceHandle";
    default:
      return "another cudaError";
  }
}
const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

// --- devices

cudaError_t cudaGetDeviceCount(int* count) {
  *count = Runtime::Get().options().devices;
  return Answer(*count > 0 ? cudaSuccess : cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= Runtime::Get().options().devices) {
    return Answer(cudaErrorInvalidDevice);
  }
  Runtime::current_device() = device;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = Runtime::current_device();
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return Answer(Runtime::Get().SynchronizeDevice()); }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const baton::simt::Options options = Runtime::Get().options();
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = options.compute_major;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = options.compute_minor;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = 4;
      return cudaSuccess;
    // Some clocks, so that whoever divides by them has something to divide by.
    case cudaDevAttrClockRate:
    case cudaDevAttrMemoryClockRate:
      *value = 1'000'000;
      return cudaSuccess;
    case cudaDevAttrGlobalMemoryBusWidth:
      *value = 1024;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = options.compute_major == 8 ? 99 * 1024 : 227 * 1024;
      return cudaSuccess;
    default:
      return Answer(cudaErrorInvalidValue);
  }
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned int,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  *function = baton::simt::DriverFunction(symbol);
  *result = *function == nullptr ? cudaDriverEntryPointSymbolNotFound : cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device < 0 || device >= Runtime::Get().options().devices) {
    return Answer(cudaErrorInvalidDevice);
  }
  const baton::simt::Options options = Runtime::Get().options();
  *properties = {};
  std::strcpy(properties->name, "emulated GPU");
  properties->major = options.compute_major;
  properties->minor = options.compute_minor;
  properties->totalGlobalMem = options.device_bytes;
  properties->multiProcessorCount = 4;
  // Each process has GPUs of its own.
  const int identity[] = {0x73696D74, static_cast<int>(getpid()), device};
  static_assert(sizeof(identity) <= sizeof(properties->uuid));
  std::memcpy(&properties->uuid, identity, sizeof(identity));
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = Runtime::Get().options().device_bytes;
  *free = *total - baton::simt::Memory::Get().allocated_bytes(Runtime::current_device());
  return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  *can = device != peer && Runtime::Get().options().peer_access ? 1 : 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) {
  const int emulated = Runtime::Get().options().driver_version;
  *version = emulated < 0 ? CUDART_VERSION : emulated;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

// --- memory

cudaError_t cudaMalloc(void** data, size_t bytes) {
  return Answer(baton::simt::Allocate(data, bytes, MemoryKind::kDevice));
}
cudaError_t cudaMallocAsync(void** data, size_t bytes, cudaStream_t stream) {
  return Answer(baton::simt::AllocateInOrder(data, bytes, stream));
}
cudaError_t cudaFreeAsync(void* data, cudaStream_t stream) {
  return Answer(baton::simt::ReleaseInOrder(data, stream));
}
cudaError_t cudaFree(void* data) { return Answer(baton::simt::Release(data, MemoryKind::kDevice)); }
cudaError_t cudaMallocHost(void** data, size_t bytes) {
  return Answer(baton::simt::Allocate(data, bytes, MemoryKind::kPinned));
}
cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned) {
  return Answer(baton::simt::Allocate(data, bytes, MemoryKind::kPinned));
}
cudaError_t cudaFreeHost(void* data) {
  return Answer(baton::simt::Release(data, MemoryKind::kPinned));
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
  const baton::simt::Allocation found = baton::simt::Memory::Get().Find(address);
  *attributes = {};
  attributes->type = cudaMemoryTypeUnregistered;
  if (found.data == nullptr) return cudaSuccess;
  attributes->type = found.kind == MemoryKind::kPinned ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
  attributes->device = found.device;
  attributes->devicePointer = const_cast<void*>(address);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  const auto is_device = [](const void* address) {
    const baton::simt::Allocation found = baton::simt::Memory::Get().Find(address);
    return found.data != nullptr && found.kind == MemoryKind::kDevice;
  };
  if ((kind == cudaMemcpyDeviceToHost && is_device(to)) ||
      (kind == cudaMemcpyHostToDevice && is_device(from))) {
    return Answer(Runtime::Get().Misuse("a copy whose kind says host of a GPU's memory",
                                        cudaErrorInvalidValue));
  }
  return Answer(baton::simt::Copy(to, from, {.width = bytes}, stream));
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  const cudaError_t status = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
  return status != cudaSuccess ? status : Answer(Runtime::Get().Synchronize(cudaStream_t{}));
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind, cudaStream_t stream) {
  return Answer(baton::simt::Copy(
      to, from, {.to_pitch = to_pitch, .from_pitch = from_pitch, .width = width, .height = height},
      stream));
}
cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes,
                                cudaStream_t stream) {
  return Answer(baton::simt::Copy(to, from, {.width = bytes}, stream));
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return Answer(baton::simt::Fill(to, value, bytes, stream));
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  const cudaError_t status = cudaMemsetAsync(to, value, bytes, nullptr);
  return status != cudaSuccess ? status : Answer(Runtime::Get().Synchronize(cudaStream_t{}));
}

// --- streams and events

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  if (flags != cudaStreamNonBlocking) {
    return Answer(
        Runtime::Get().Misuse("a stream that waits for the default stream", cudaErrorInvalidValue));
  }
  return Answer(Runtime::Get().CreateStream(stream));
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return Answer(cudaSuccess);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return Answer(Runtime::Get().DestroyStream(stream));
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return Answer(Runtime::Get().Synchronize(stream));
}
cudaError_t cudaStreamQuery(cudaStream_t stream) { return Answer(Runtime::Get().Query(stream)); }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  return Answer(Runtime::Get().Await(stream, event));
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return Answer(Runtime::Get().Enqueue(stream, [function, data](uint32_t) {
    function(data);
    return true;
  }));
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return Answer(Runtime::Get().CreateEvent(event));
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return Answer(Runtime::Get().CreateEvent(event));
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return Answer(Runtime::Get().DestroyEvent(event));
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return Answer(Runtime::Get().Record(event, stream));
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return Answer(Runtime::Get().Synchronize(event));
}
cudaError_t cudaEventQuery(cudaEvent_t event) { return Answer(Runtime::Get().Query(event)); }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t start, cudaEvent_t end) {
  return Answer(Runtime::Get().ElapsedTime(ms, start, end));
}

// --- graphs

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  return Answer(Runtime::Get().BeginCapture(stream));
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return Answer(Runtime::Get().EndCapture(stream, graph));
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return Answer(Runtime::Get().DestroyGraph(graph));
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  return Answer(Runtime::Get().Instantiate(exec, graph));
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  return Answer(Runtime::Get().DestroyExec(exec));
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  return Answer(Runtime::Get().LaunchGraph(exec, stream));
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* nodes) {
  return Answer(Runtime::Get().CountNodes(graph, nodes));
}

}  // extern "C"
