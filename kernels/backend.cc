#include "kernels/backend.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/op_table.h"

namespace baton::kernels {
namespace {

absl::Status CannotRecord(BackendKind kind) {
  return absl::FailedPreconditionError(
      absl::StrCat("this device of backend ", BackendName(kind), " does not record ops"));
}

}  // namespace

const char* BackendName(BackendKind kind) {
  switch (kind) {
    case BackendKind::kReference:
      return "reference";
    case BackendKind::kCpu:
      return "cpu";
    case BackendKind::kCuda:
      return "cuda";
  }
  return "?";
}

const char* IsaName(IsaLevel isa) {
  switch (isa) {
    case IsaLevel::kPortable:
      return "portable";
    case IsaLevel::kAvx2:
      return "avx2";
    case IsaLevel::kAvx512:
      return "avx512";
    case IsaLevel::kAvx512Bf16:
      return "avx512_bf16";
  }
  return "?";
}

IsaLevel DetectIsa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
      !__builtin_cpu_supports("f16c")) {
    return IsaLevel::kPortable;
  }
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
    return IsaLevel::kAvx2;
  }
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vbmi")) {
    return IsaLevel::kAvx512;
  }
  return IsaLevel::kAvx512Bf16;
#else
  return IsaLevel::kPortable;
#endif
}

Device::Device(BackendKind kind, IsaLevel isa, const OpTable& ops, const ThreadPoolOptions& threads,
               int64_t min_parallel_work, std::unique_ptr<DeviceState> state)
    : kind_(kind),
      isa_(isa),
      ops_(ops),
      min_parallel_work_(min_parallel_work),
      state_(std::move(state)),
      pool_(threads) {}

absl::StatusOr<DeviceBuffer> Device::Allocate(size_t bytes) {
  return ops_.memory.allocate(*this, bytes);
}

absl::Status Device::CopyToDevice(void* device, const void* host, size_t bytes) {
  return ops_.memory.copy_to_device(*this, device, host, bytes);
}

absl::Status Device::CopyToHost(void* host, const void* device, size_t bytes) {
  return ops_.memory.copy_to_host(*this, host, device, bytes);
}

absl::Status Device::EnqueueCopyToDevice(void* device, const void* host, size_t bytes) {
  return ops_.memory.enqueue_copy_to_device(*this, device, host, bytes);
}

absl::Status Device::Synchronize() { return ops_.memory.synchronize(*this); }

absl::StatusOr<std::unique_ptr<Fence>> Device::Mark() { return ops_.queue.mark(*this); }

bool Device::can_record() const {
  return ops_.queue.can_record != nullptr && ops_.queue.can_record(*this);
}

absl::Status Device::BeginRecording() {
  if (!can_record()) return CannotRecord(kind_);
  return ops_.queue.begin_recording(*this);
}

absl::StatusOr<std::unique_ptr<Recording>> Device::EndRecording() {
  if (!can_record()) return CannotRecord(kind_);
  return ops_.queue.end_recording(*this);
}

absl::Status Device::Replay(Recording& recording) {
  if (!can_record()) return CannotRecord(kind_);
  return ops_.queue.replay(*this, recording);
}

absl::StatusOr<std::unique_ptr<Device>> CreateDevice(const DeviceOptions& options) {
  if (options.threads < 0 || options.threads > 1024) {
    return absl::InvalidArgumentError(
        absl::StrCat("threads is ", options.threads, ", expected 0 (one for each CPU) to 1024"));
  }
  const auto make = [&options](IsaLevel isa, const OpTable& ops, int threads) {
    return std::make_unique<Device>(options.backend, isa, ops,
                                    ThreadPoolOptions{.threads = threads, .pin = options.pin},
                                    options.min_parallel_work);
  };
  switch (options.backend) {
    case BackendKind::kReference:
      return make(IsaLevel::kPortable, ReferenceOps(), 1);
    case BackendKind::kCpu:
      return make(std::min(options.max_isa, DetectIsa()), CpuOps(), options.threads);
    case BackendKind::kCuda:
      return CreateCudaDevice(options);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown backend ", static_cast<int>(options.backend)));
}

std::string BackendsText() {
  std::string text =
      absl::StrCat(BackendName(BackendKind::kCpu), ", ", BackendName(BackendKind::kReference));
  const std::string cuda = CudaText();
  if (!cuda.empty()) absl::StrAppend(&text, ", ", cuda);
  return text;
}

}  // namespace baton::kernels
