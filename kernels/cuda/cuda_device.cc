#include "kernels/cuda/cuda_device.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "kernels/cuda/cublaslt_gemm.h"
#include "kernels/cuda/cuda_build.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_queue.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/op_table.h"

namespace baton::kernels {
namespace cuda {
namespace {

constexpr size_t kAlignment = 256;
constexpr size_t kLeastScratch = size_t{8} << 20;

absl::StatusOr<DeviceBuffer> Allocate(Device& device, size_t bytes) {
  BATON_RETURN_IF_ERROR(CudaStatus(cudaSetDevice(CudaState::Of(device).gpu()), "cudaSetDevice"));
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, std::max<size_t>(bytes, 1));
  if (error == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    size_t free = 0, total = 0;
    (void)cudaMemGetInfo(&free, &total);
    return absl::ResourceExhaustedError(absl::StrCat("cannot allocate ", bytes, " bytes on GPU ",
                                                     CudaState::Of(device).gpu(), ": ", free,
                                                     " of ", total,
                                                     " are free; lower "
                                                     "kernels.cuda.memory_fraction or memory_mb, "
                                                     "or end what else is on that GPU"));
  }
  BATON_RETURN_IF_ERROR(CudaStatus(error, "cudaMalloc"));
  return DeviceBuffer(data, bytes, [](void* p) { (void)cudaFree(p); });
}

absl::Status CopyToDevice(Device& device, void* to, const void* from, size_t bytes) {
  CudaState& state = CudaState::Of(device);
  BATON_RETURN_IF_ERROR(state.EnqueueUpload(to, from, bytes, "copy to the GPU"));
  return CudaStatus(cudaStreamSynchronize(state.stream()), "copy to the GPU");
}

absl::Status EnqueueCopyToDevice(Device& device, void* to, const void* from, size_t bytes) {
  return CudaState::Of(device).EnqueueUpload(to, from, bytes, "copy to the GPU");
}

absl::Status CopyToHost(Device& device, void* to, const void* from, size_t bytes) {
  return CudaState::Of(device).CopyToHost(to, from, bytes, "copy from the GPU");
}

absl::Status Synchronize(Device& device) {
  return CudaState::Of(device).Synchronize("an op of the GPU");
}

const OpTable& CudaOps() {
#define BATON_OP_ENTRY(Name, entry) .entry = cuda::Name,
  static const OpTable kTable = {
      BATON_KERNEL_OPS(BATON_OP_ENTRY).memory = {.allocate = Allocate,
                                                 .copy_to_device = CopyToDevice,
                                                 .copy_to_host = CopyToHost,
                                                 .enqueue_copy_to_device = EnqueueCopyToDevice,
                                                 .synchronize = Synchronize},
      .queue = CudaQueue()};
#undef BATON_OP_ENTRY
  return kTable;
}

absl::Status NotRecorded(const char* what) {
  return absl::FailedPreconditionError(
      absl::StrCat(what, ": no part of ops that are being recorded, since the host waits for it"));
}

absl::Status NoGpu(const std::string& why) {
  return absl::FailedPreconditionError(
      absl::StrCat(why,
                   "; check `nvidia-smi`, in a container that it was started with GPUs (docker "
                   "run --gpus all), or compute on the CPU (--device cpu)"));
}

// Of CUDA's version numbers: 13000 is 13.0.
std::string VersionText(int version) {
  return absl::StrCat(version / 1000, ".", version % 1000 / 10);
}

// The driver is there and not older than the runtime. A runtime works with every driver of its own
// major version.
absl::Status CheckDriver() {
  int driver = 0, runtime = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  BATON_RETURN_IF_ERROR(CudaStatus(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion"));
  const std::string expected =
      absl::StrCat("expected one for CUDA ", VersionText(runtime / 1000 * 1000), " or later");
  if (driver == 0) {
    return NoGpu(
        absl::StrCat("no GPU can be used: no NVIDIA driver was found (libcuda.so.1), ", expected));
  }
  if (driver / 1000 < runtime / 1000) {
    return NoGpu(absl::StrCat("no GPU can be used: the NVIDIA driver is one for CUDA ",
                              VersionText(driver), ", ", expected, "; update it"));
  }
  return absl::OkStatus();
}

// > 0.
absl::StatusOr<int> CountGpus() {
  BATON_RETURN_IF_ERROR(CheckDriver());
  int count = 0;
  const cudaError_t counted = cudaGetDeviceCount(&count);
  if (counted == cudaSuccess && count > 0) return count;
  (void)cudaGetLastError();
  return NoGpu(absl::StrCat("no GPU can be used: ", counted == cudaSuccess
                                                        ? "CUDA sees none"
                                                        : cudaGetErrorString(counted)));
}

// "89" is code for 8.9 and what comes behind it in 8; "90a" for 9.0 alone.
bool HasCodeFor(const std::vector<std::string>& architectures, int capability) {
  return std::any_of(architectures.begin(), architectures.end(), [&](const std::string& name) {
    const int architecture = std::atoi(name.c_str());
    if (name.ends_with('a')) return architecture == capability;
    return architecture / 10 == capability / 10 && architecture <= capability;
  });
}

absl::Status CheckCapability(int gpu, int capability) {
  const std::vector<std::string> architectures = GetCudaBuild().architectures;
  if (HasCodeFor(architectures, capability)) return absl::OkStatus();
  return NoGpu(absl::StrCat(
      "GPU ", gpu, " has compute capability ", capability / 10, ".", capability % 10,
      ", for which this binary has no code (it has sm_", absl::StrJoin(architectures, ", sm_"),
      "); use another GPU, or build for it (-DBATON_CUDA_ARCHITECTURES) if it is an Ada, Hopper or "
      "Blackwell data center GPU"));
}

}  // namespace

absl::Status CudaStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  (void)cudaGetLastError();
  const std::string message =
      absl::StrCat(what, ": ", cudaGetErrorString(error), " (", cudaGetErrorName(error), ")");
  if (error == cudaErrorMemoryAllocation) return absl::ResourceExhaustedError(message);
  return absl::InternalError(message);
}

absl::StatusOr<std::unique_ptr<CudaState>> CudaState::Create(const DeviceOptions& options) {
  BATON_ASSIGN_OR_RETURN(const int count, CountGpus());
  if (options.gpu < 0 || options.gpu >= count) {
    return absl::InvalidArgumentError(
        absl::StrCat("gpu is ", options.gpu, ", expected 0 to ", count - 1));
  }
  std::unique_ptr<CudaState> state(new CudaState);
  state->gpu_ = options.gpu;
  state->working_bytes_ = options.working_bytes;
  state->blocking_ = options.blocking;
  BATON_RETURN_IF_ERROR(CudaStatus(cudaSetDevice(options.gpu), "cudaSetDevice"));
  int major = 0, minor = 0;
  const auto attribute = [&](int* value, cudaDeviceAttr which) {
    return CudaStatus(cudaDeviceGetAttribute(value, which, options.gpu), "cudaDeviceGetAttribute");
  };
  BATON_RETURN_IF_ERROR(attribute(&major, cudaDevAttrComputeCapabilityMajor));
  BATON_RETURN_IF_ERROR(attribute(&minor, cudaDevAttrComputeCapabilityMinor));
  BATON_RETURN_IF_ERROR(attribute(&state->processors_, cudaDevAttrMultiProcessorCount));
  state->architecture_ = major * 10 + minor;
  state->warpgroups_ = options.warpgroups && state->architecture_ == 90;
  BATON_RETURN_IF_ERROR(CheckCapability(options.gpu, state->architecture_));
  state->records_ = options.records && !options.blocking;
  if (options.dense_gemm == DenseGemm::kCublasLt) {
    BATON_ASSIGN_OR_RETURN(state->cublaslt_, CublasLtGemm::Create());
  }
  state->stream_ = static_cast<cudaStream_t>(options.queue);
  if (state->stream_ != nullptr) return state;
  state->owns_stream_ = true;
  int least = 0, greatest = 0;
  BATON_RETURN_IF_ERROR(CudaStatus(cudaDeviceGetStreamPriorityRange(&least, &greatest),
                                   "cudaDeviceGetStreamPriorityRange"));
  BATON_RETURN_IF_ERROR(
      CudaStatus(cudaStreamCreateWithPriority(&state->stream_, cudaStreamNonBlocking,
                                              options.urgent ? greatest : least),
                 "cudaStreamCreateWithPriority"));
  return state;
}

CudaState& CudaState::Begin(Device& device) {
  CudaState& state = Of(device);
  (void)cudaSetDevice(state.gpu_);  // existed when the device was created
  state.ResetScratch();
  return state;
}

CudaState::~CudaState() {
  if (stream_ == nullptr) return;
  for (const Block& block : blocks_) (void)cudaFreeAsync(block.data, stream_);
  (void)cudaStreamSynchronize(stream_);
  if (owns_stream_) (void)cudaStreamDestroy(stream_);
}

void CudaState::ResetScratch() {
  if (blocks_.size() > 1) {
    // What one op needed in pieces becomes one piece. They go when the ops behind are done.
    size_t bytes = 0;
    for (const Block& block : blocks_) {
      bytes += block.bytes;
      (void)cudaFreeAsync(block.data, stream_);
    }
    blocks_.clear();
    ++moves_;
    Block whole{.data = nullptr, .bytes = bytes};
    if (cudaMallocAsync(&whole.data, bytes, stream_) == cudaSuccess) blocks_.push_back(whole);
  }
  used_ = 0;
}

absl::StatusOr<void*> CudaState::ScratchBytes(size_t bytes) {
  const size_t rounded = (std::max<size_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
  if (blocks_.empty() || blocks_.back().bytes - used_ < rounded) {
    if (recording_) {
      return absl::FailedPreconditionError(absl::StrCat(
          "an op that is recorded needs ", rounded, " bytes of working memory more than it has"));
    }
    Block block{.data = nullptr, .bytes = std::max(rounded, kLeastScratch)};
    BATON_RETURN_IF_ERROR(
        CudaStatus(cudaMallocAsync(&block.data, block.bytes, stream_), "working memory of an op"));
    blocks_.push_back(block);
    used_ = 0;
  }
  void* const data = static_cast<char*>(blocks_.back().data) + used_;
  used_ += rounded;
  return data;
}

absl::StatusOr<void*> CudaState::UploadBytes(const void* from, size_t bytes, const char* what) {
  BATON_ASSIGN_OR_RETURN(void* const to, ScratchBytes(bytes));
  BATON_RETURN_IF_ERROR(EnqueueUpload(to, from, bytes, what));
  return to;
}

absl::Status CudaState::EnqueueUpload(void* to, const void* from, size_t bytes, const char* what) {
  if (recording_) return NotRecorded(what);
  // Pageable memory: the runtime has read it when the call returns.
  return CudaStatus(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_), what);
}

absl::Status CudaState::CopyToHost(void* to, const void* from, size_t bytes, const char* what) {
  if (recording_) return NotRecorded(what);
  BATON_RETURN_IF_ERROR(
      CudaStatus(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_), what));
  return Synchronize(what);
}

absl::Status CudaState::Synchronize(const char* what) {
  BATON_RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(stream_), what));
  return cublaslt_ == nullptr ? absl::OkStatus() : cublaslt_->TakeVerdicts();
}

absl::Status CudaState::Finish(cudaError_t launched, const char* op) {
  BATON_RETURN_IF_ERROR(CudaStatus(launched, op));
  return blocking_ ? Synchronize(op) : absl::OkStatus();
}

}  // namespace cuda

absl::StatusOr<std::unique_ptr<Device>> CreateCudaDevice(const DeviceOptions& options) {
  BATON_ASSIGN_OR_RETURN(std::unique_ptr<cuda::CudaState> state, cuda::CudaState::Create(options));
  return std::make_unique<Device>(BackendKind::kCuda, IsaLevel::kPortable, cuda::CudaOps(),
                                  ThreadPoolOptions{.threads = 1, .pin = false},
                                  options.min_parallel_work, std::move(state));
}

absl::StatusOr<int64_t> GpuMemoryBytes() {
  BATON_ASSIGN_OR_RETURN(const int count, cuda::CountGpus());
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int gpu = 0; gpu < count; ++gpu) {
    cudaDeviceProp properties;
    BATON_RETURN_IF_ERROR(
        cuda::CudaStatus(cudaGetDeviceProperties(&properties, gpu), "cudaGetDeviceProperties"));
    least = std::min(least, static_cast<int64_t>(properties.totalGlobalMem));
  }
  return least;
}

std::string CudaText() {
  const cuda::CudaBuild build = cuda::GetCudaBuild();
  return absl::StrCat(BackendName(BackendKind::kCuda), " (", build.emulated ? "emulated " : "",
                      "sm_", absl::StrJoin(build.architectures, ", sm_"),
                      build.libraries.empty() ? "" : "; ", build.libraries, ")");
}

}  // namespace baton::kernels
