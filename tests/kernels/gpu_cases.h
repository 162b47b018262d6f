#ifndef BATON_TESTS_KERNELS_GPU_CASES_H_
#define BATON_TESTS_KERNELS_GPU_CASES_H_

// Calls of every op in the sizes of DeepSeek-V3, with what each must at least move and compute: for
// timing on a GPU (gpu_times.cc). Inputs lie in the device's memory and are larger than its L2
// cache, where the op's real ones are.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "kernels/ops.h"

namespace baton::kernels {

// What limits an op beside memory.
enum class GpuUnit : uint8_t { kTensorE4M3, kTensorBf16, kF32 };

struct GpuCase {
  std::string op;    // as in op_list.h
  std::string what;  // sizes and types, for people
  double bytes = 0;  // that the call must read and write, each once
  double flops = 0;  // multiplications and additions
  GpuUnit unit = GpuUnit::kF32;
  // That cuBLASLt can compute as well: on every GPU; on Hopper.
  bool dense_bf16 = false, dense_codes = false;
  std::function<absl::Status(Device&)> run;
  std::vector<std::shared_ptr<void>> memory;  // of the arguments
};

// Makes one case after the other, so that the memory of one is free before the next. `sizes`: kTiny
// for tests of the table itself.
enum class GpuSizes : uint8_t { kDeepSeekV3, kTiny };
using GpuCaseMaker = std::function<GpuCase(Device&)>;
std::vector<GpuCaseMaker> GpuCases(GpuSizes sizes);

}  // namespace baton::kernels

#endif  // BATON_TESTS_KERNELS_GPU_CASES_H_
