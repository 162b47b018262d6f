#ifndef BATON_KERNELS_BACKEND_H_
#define BATON_KERNELS_BACKEND_H_

// A Device is one place where ops run: the table of a backend's ops plus what they need (threads,
// scratch memory, the instruction set they may use). Whoever computes owns one; ops take it by
// reference. One op at a time per Device: calls from several threads must be serialized by the
// owner, two Devices are independent. An op has finished when it returns (host backends) or is
// ordered before later ops of the same Device (devices with queues; see Synchronize).

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/thread_pool.h"
#include "kernels/scratch.h"

namespace baton::kernels {

enum class BackendKind : uint8_t {
  kReference,  // slow, double accumulation: the oracle
  kCpu,        // SIMD with runtime dispatch, multi-threaded
  kCuda,
};
const char* BackendName(BackendKind kind);

// Instruction sets of the cpu backend, low to high. Bits are the same for every run at one level,
// not across levels.
enum class IsaLevel : uint8_t {
  kPortable,    // what every machine of the architecture has
  kAvx2,        // AVX2, FMA, F16C
  kAvx512,      // AVX-512 F, BW, DQ, VL
  kAvx512Bf16,  // and AVX512_BF16, AVX512_VBMI
};
const char* IsaName(IsaLevel isa);
// The highest level that this machine runs.
IsaLevel DetectIsa();

// What computes dense products on the cuda backend: those of BF16 weights, and on Hopper those of
// rows in E4M3 (docs/kernels/cuda.md, "cuBLASLt").
enum class DenseGemm : uint8_t { kOwn, kCublasLt };

struct DeviceOptions {
  BackendKind backend = BackendKind::kCpu;
  int threads = 0;   // 0: one for each CPU the process may run on; else 1..1024
  bool pin = false;  // pin thread i to the i-th allowed CPU
  IsaLevel max_isa = IsaLevel::kAvx512Bf16;  // the level used is min(max_isa, DetectIsa())
  // Work of one op, in elementary operations (a multiply-add), below which it stays on the calling
  // thread. The default is about 20 microseconds of one core, the price of waking another on a
  // machine that has other things to do; 0 shares out everything (no bit changes).
  int64_t min_parallel_work = int64_t{1} << 18;
  // cuda: memory that an op takes to have more of its work side by side; it takes more where the
  // least part of its work needs more (no bit changes).
  int64_t working_bytes = int64_t{512} << 20;
  int gpu = 0;            // cuda: which of the machine's, from 0 on
  void* queue = nullptr;  // cuda: the cudaStream_t of this GPU that ops stand in, where somebody
                          // else orders work behind them (NCCL); outlives the device. Null: its own
  // cuda: use the kernels for Hopper's warpgroups, where the GPU is one; false: those of every GPU.
  // Bits differ between the two.
  bool warpgroups = true;
  DenseGemm dense_gemm = DenseGemm::kOwn;  // cuda
  bool blocking = false;  // cuda: an op has finished when it returns, with the error it met (for
                          // tests, and to find the op that fails)
  bool records = true;    // cuda: ops can be recorded (Device::BeginRecording); never if `blocking`
  bool urgent = false;    // cuda: ops go before those of other Devices of the GPU that are not
};

struct OpTable;  // kernels/op_table.h

// A point among the ops of a Device, which outlives it.
class Fence {
 public:
  virtual ~Fence() = default;
  // Returns when every op before the point has finished, with the first error one of them met. From
  // any thread.
  virtual absl::Status Wait() = 0;
};

// Ops that were recorded once, to be run again with the same arguments. The Device that recorded
// them outlives it.
class Recording {
 public:
  virtual ~Recording() = default;
};

// Bytes in the device's memory, 64-byte aligned, freed with the object. Not zeroed. The Device must
// outlive it.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(void* data, size_t bytes, void (*free)(void*)) : data_(data, free), bytes_(bytes) {}
  void* data() const { return data_.get(); }
  size_t bytes() const { return bytes_; }

 private:
  std::unique_ptr<void, void (*)(void*)> data_{nullptr, [](void*) {}};
  size_t bytes_ = 0;
};

// What a backend keeps with a Device, beyond what all have.
class DeviceState {
 public:
  virtual ~DeviceState() = default;
};

class Device {
 public:
  Device(BackendKind kind, IsaLevel isa, const OpTable& ops, const ThreadPoolOptions& threads,
         int64_t min_parallel_work, std::unique_ptr<DeviceState> state = nullptr);
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  BackendKind kind() const { return kind_; }
  IsaLevel isa() const { return isa_; }
  const OpTable& ops() const { return ops_; }
  ThreadPool& pool() { return pool_; }
  int64_t min_parallel_work() const { return min_parallel_work_; }
  // Valid inside one op: every op resets it first.
  Scratch& scratch() { return scratch_; }
  DeviceState* state() { return state_.get(); }
  const DeviceState* state() const { return state_.get(); }
  // Whether the host may dereference tensor data of this device.
  bool host_memory() const { return kind_ != BackendKind::kCuda; }

  // RESOURCE_EXHAUSTED when the memory is not there.
  absl::StatusOr<DeviceBuffer> Allocate(size_t bytes);
  // Copy `bytes` between host and device memory; done on return.
  absl::Status CopyToDevice(void* device, const void* host, size_t bytes);
  absl::Status CopyToHost(void* host, const void* device, size_t bytes);
  // Copies to device memory, ordered before later ops of this Device; `host` may change on return.
  absl::Status EnqueueCopyToDevice(void* device, const void* host, size_t bytes);
  // Returns when every op called before has finished, with the first error one of them met.
  absl::Status Synchronize();
  // Behind the ops called so far.
  absl::StatusOr<std::unique_ptr<Fence>> Mark();

  // Whether the next three work: elsewhere they are FAILED_PRECONDITION.
  bool can_record() const;
  // From here to EndRecording, ops are not run but recorded, with the arguments that they are
  // called with. They have run once before in the same shapes (working memory does not grow here),
  // and neither copy to or from the host nor answer to it: calls that do are FAILED_PRECONDITION.
  absl::Status BeginRecording();
  // Called once for each BeginRecording, also where an op has failed: then it is an error.
  absl::StatusOr<std::unique_ptr<Recording>> EndRecording();
  // Runs the recorded ops behind those called before. FAILED_PRECONDITION where working memory has
  // moved since: they must be recorded anew.
  absl::Status Replay(Recording& recording);

 private:
  const BackendKind kind_;
  const IsaLevel isa_;
  const OpTable& ops_;
  const int64_t min_parallel_work_;
  const std::unique_ptr<DeviceState> state_;
  ThreadPool pool_;
  Scratch scratch_;
};

// FAILED_PRECONDITION for a backend this build does not have (the message names the preset to
// build) or a GPU that cannot be used, INVALID_ARGUMENT for options out of range.
absl::StatusOr<std::unique_ptr<Device>> CreateDevice(const DeviceOptions& options);

// CreateDevice's part for kCuda. Which of its definitions a program gets is chosen by what it links
// (kernels/CMakeLists.txt): the backend, or cuda_absent.cc.
absl::StatusOr<std::unique_ptr<Device>> CreateCudaDevice(const DeviceOptions& options);

// Bytes of memory of the GPU with the least, of those that this process sees; FAILED_PRECONDITION
// where there is none. Defined where CreateCudaDevice is.
absl::StatusOr<int64_t> GpuMemoryBytes();

// The backends of this program, for people: "cpu, reference, cuda (sm_89, sm_90a; CUDA 13.0)".
std::string BackendsText();
// BackendsText's part for kCuda, empty without the backend; defined where CreateCudaDevice is.
std::string CudaText();

}  // namespace baton::kernels

#endif  // BATON_KERNELS_BACKEND_H_
