#ifndef BATON_TESTS_KERNELS_GPU_TIMES_H_
#define BATON_TESTS_KERNELS_GPU_TIMES_H_

// Times of ops on a GPU beside what the hardware allows, as a table and as JSON.

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "tests/kernels/gpu_cases.h"

namespace baton::kernels {

// What a GPU can do at most, from its properties.
struct GpuLimits {
  std::string name;
  int capability = 0;  // 90
  int processors = 0;
  double bytes_per_s = 0;
  double bf16_flops_per_s = 0;  // dense, on tensor cores, sums in F32
  double f32_flops_per_s = 0;
};
absl::StatusOr<GpuLimits> LimitsOf(int gpu);

struct GpuTime {
  std::string op, what;
  double seconds = 0;
  double bound_seconds = 0;  // the larger of bytes / bandwidth and flops / peak
  bool memory_bound = false;
  double bytes = 0, flops = 0;
  std::optional<double> cublaslt_seconds;  // of the same product
  std::string cublaslt_refused;            // why it has none: bits are at stake, or no algorithm
};

struct GpuTimesOptions {
  GpuSizes sizes = GpuSizes::kDeepSeekV3;
  Duration at_least = Duration::Millis(200);  // each measurement
  int warmups = 3;
};
// Every case, one after the other. The first error ends it, but for what cuBLASLt refuses.
absl::StatusOr<std::vector<GpuTime>> TimeOps(const GpuLimits& limits,
                                             const GpuTimesOptions& options, Clock& clock);

std::string TimesTable(const GpuLimits& limits, const std::vector<GpuTime>& times);
std::string TimesJson(const GpuLimits& limits, const std::vector<GpuTime>& times);

}  // namespace baton::kernels

#endif  // BATON_TESTS_KERNELS_GPU_TIMES_H_
