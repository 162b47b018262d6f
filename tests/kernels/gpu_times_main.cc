// gpu_times [JSON]: times every op on the first GPU; the table on standard output, the same as JSON
// into the file. Run by tools/gpu_check.

#include <fstream>
#include <iostream>

#include "base/clock.h"
#include "tests/kernels/gpu_times.h"

int main(int argc, char** argv) {
  using namespace baton::kernels;
  baton::MonotonicClock clock;
  const auto run = [&]() -> absl::Status {
    const absl::StatusOr<std::unique_ptr<Device>> usable =
        CreateDevice({.backend = BackendKind::kCuda});
    if (!usable.ok()) return usable.status();
    const absl::StatusOr<GpuLimits> limits = LimitsOf(0);
    if (!limits.ok()) return limits.status();
    const absl::StatusOr<std::vector<GpuTime>> times = TimeOps(*limits, {}, clock);
    if (!times.ok()) return times.status();
    std::cout << TimesTable(*limits, *times);
    if (argc < 2) return absl::OkStatus();
    std::ofstream out(argv[1]);
    out << TimesJson(*limits, *times);
    out.close();
    return out ? absl::OkStatus() : absl::NotFoundError(std::string("cannot write ") + argv[1]);
  };
  const absl::Status status = run();
  if (status.ok()) return 0;
  std::cerr << "error: " << status.message() << std::endl;
  return 1;
}
