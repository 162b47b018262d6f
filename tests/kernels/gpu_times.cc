#include "tests/kernels/gpu_times.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "nlohmann/json.hpp"

namespace baton::kernels {
namespace {

// Multiplications and additions of an SM in a cycle: dense BF16 on tensor cores, F32 elsewhere.
struct PerCycle {
  int capability;
  double bf16, f32;
};
constexpr PerCycle kPerCycle[] = {{89, 1024, 256}, {90, 4096, 256}, {100, 8192, 256}};

absl::StatusOr<int> Attribute(cudaDeviceAttr which, int gpu) {
  int value = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&value, which, gpu);
  if (error == cudaSuccess) return value;
  return absl::InternalError(absl::StrCat("cudaDeviceGetAttribute ", static_cast<int>(which), ": ",
                                          cudaGetErrorName(error)));
}

// Seconds of one call: as many behind each other as `at_least` takes, waited for at the end.
absl::StatusOr<double> Measure(Device& device, const GpuCase& work, const GpuTimesOptions& options,
                               Clock& clock) {
  for (int i = 0; i < options.warmups; ++i) BATON_RETURN_IF_ERROR(work.run(device));
  BATON_RETURN_IF_ERROR(device.Synchronize());
  constexpr int kMostCalls = 1 << 16;
  for (int calls = 1;; calls *= 2) {
    const Tick start = clock.Now();
    for (int i = 0; i < calls; ++i) BATON_RETURN_IF_ERROR(work.run(device));
    BATON_RETURN_IF_ERROR(device.Synchronize());
    const Duration passed = clock.Now() - start;
    if (passed >= options.at_least || calls >= kMostCalls) return passed.seconds() / calls;
  }
}

std::string Times(double seconds) { return absl::StrFormat("%10.1f", seconds * 1e6); }

}  // namespace

absl::StatusOr<GpuLimits> LimitsOf(int gpu) {
  GpuLimits limits;
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, gpu);
  if (error != cudaSuccess) {
    return absl::FailedPreconditionError(
        absl::StrCat("GPU ", gpu, ": ", cudaGetErrorString(error)));
  }
  limits.name = properties.name;
  limits.capability = properties.major * 10 + properties.minor;
  limits.processors = properties.multiProcessorCount;
  BATON_ASSIGN_OR_RETURN(const int memory_khz, Attribute(cudaDevAttrMemoryClockRate, gpu));
  BATON_ASSIGN_OR_RETURN(const int bus_bits, Attribute(cudaDevAttrGlobalMemoryBusWidth, gpu));
  BATON_ASSIGN_OR_RETURN(const int khz, Attribute(cudaDevAttrClockRate, gpu));
  // Memory sends at both edges of its clock.
  limits.bytes_per_s = 2e3 * memory_khz * bus_bits / 8;
  for (const PerCycle& per : kPerCycle) {
    if (per.capability > limits.capability) continue;
    limits.bf16_flops_per_s = per.bf16 * limits.processors * khz * 1e3;
    limits.f32_flops_per_s = per.f32 * limits.processors * khz * 1e3;
  }
  return limits;
}

// Tensor cores of every architecture multiply E4M3 at twice BF16's rate.
double PeakOf(const GpuLimits& limits, GpuUnit unit) {
  if (unit == GpuUnit::kF32) return limits.f32_flops_per_s;
  return limits.bf16_flops_per_s * (unit == GpuUnit::kTensorE4M3 ? 2 : 1);
}

absl::StatusOr<std::vector<GpuTime>> TimeOps(const GpuLimits& limits,
                                             const GpuTimesOptions& options, Clock& clock) {
  DeviceOptions device_options{.backend = BackendKind::kCuda};
  BATON_ASSIGN_OR_RETURN(const std::unique_ptr<Device> device, CreateDevice(device_options));
  device_options.dense_gemm = DenseGemm::kCublasLt;
  BATON_ASSIGN_OR_RETURN(const std::unique_ptr<Device> library, CreateDevice(device_options));
  std::vector<GpuTime> times;
  for (const GpuCaseMaker& make : GpuCases(options.sizes)) {
    const GpuCase work = make(*device);
    const double peak = PeakOf(limits, work.unit);
    const double memory = work.bytes / limits.bytes_per_s, compute = work.flops / peak;
    GpuTime time{.op = work.op,
                 .what = work.what,
                 .bound_seconds = std::max(memory, compute),
                 .memory_bound = memory >= compute,
                 .bytes = work.bytes,
                 .flops = work.flops};
    const auto measured = [&](Device& on) -> absl::StatusOr<double> {
      absl::StatusOr<double> seconds = Measure(on, work, options, clock);
      if (seconds.ok()) return seconds;
      return absl::Status(
          seconds.status().code(),
          absl::StrCat(work.op, " (", work.what, "): ", std::string(seconds.status().message())));
    };
    BATON_ASSIGN_OR_RETURN(time.seconds, measured(*device));
    if (work.dense_bf16 || (work.dense_codes && limits.capability == 90)) {
      const absl::StatusOr<double> seconds = measured(*library);
      if (seconds.ok()) {
        time.cublaslt_seconds = *seconds;
      } else if (absl::IsFailedPrecondition(seconds.status())) {
        time.cublaslt_refused = std::string(seconds.status().message());
      } else {
        return seconds.status();
      }
    }
    times.push_back(std::move(time));
  }
  return times;
}

std::string TimesTable(const GpuLimits& limits, const std::vector<GpuTime>& times) {
  std::string table = absl::StrFormat(
      "%s, capability %d.%d, %d SMs: %.2f TB/s, %.0f TFLOPS BF16, %.1f TFLOPS F32 (peaks)\n\n"
      "%-14s  %-58s  %10s  %10s  %5s  %-7s  %10s\n",
      limits.name, limits.capability / 10, limits.capability % 10, limits.processors,
      limits.bytes_per_s * 1e-12, limits.bf16_flops_per_s * 1e-12, limits.f32_flops_per_s * 1e-12,
      "op", "sizes", "us", "bound us", "share", "by", "cuBLASLt");
  for (const GpuTime& time : times) {
    absl::StrAppendFormat(&table, "%-14s  %-58s  %s  %s  %4.0f%%  %-7s  %s\n", time.op, time.what,
                          Times(time.seconds), Times(time.bound_seconds),
                          100 * time.bound_seconds / time.seconds,
                          time.memory_bound ? "memory" : "compute",
                          time.cublaslt_seconds ? Times(*time.cublaslt_seconds) : "");
    if (!time.cublaslt_refused.empty()) {
      absl::StrAppend(&table, "  cuBLASLt refused: ", time.cublaslt_refused, "\n");
    }
  }
  return table;
}

std::string TimesJson(const GpuLimits& limits, const std::vector<GpuTime>& times) {
  nlohmann::json out;
  out["gpu"] = {{"name", limits.name},
                {"capability", limits.capability},
                {"processors", limits.processors},
                {"bytes_per_s", limits.bytes_per_s},
                {"bf16_flops_per_s", limits.bf16_flops_per_s},
                {"f32_flops_per_s", limits.f32_flops_per_s}};
  out["times"] = nlohmann::json::array();
  for (const GpuTime& time : times) {
    nlohmann::json row = {{"op", time.op},
                          {"what", time.what},
                          {"seconds", time.seconds},
                          {"bound_seconds", time.bound_seconds},
                          {"bytes", time.bytes},
                          {"flops", time.flops},
                          {"bound_by", time.memory_bound ? "memory" : "compute"}};
    if (time.cublaslt_seconds) row["cublaslt_seconds"] = *time.cublaslt_seconds;
    if (!time.cublaslt_refused.empty()) row["cublaslt_refused"] = time.cublaslt_refused;
    out["times"].push_back(row);
  }
  return out.dump(2) + "\n";
}

}  // namespace baton::kernels
