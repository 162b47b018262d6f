#ifndef BATON_KERNELS_CPU_PARALLEL_H_
#define BATON_KERNELS_CPU_PARALLEL_H_

#include <cstdint>

#include "kernels/backend.h"

namespace baton::kernels::cpu {

// body(begin, end, thread) over [0, count), each of `cost` elementary operations: on the device's
// threads if there is enough work (DeviceOptions::min_parallel_work), else on the caller's.
template <typename Body>
void ParallelFor(Device& device, int64_t count, int64_t cost, const Body& body) {
  if (count <= 0) return;
  if (count == 1 || count * cost < device.min_parallel_work()) {
    body(int64_t{0}, count, 0);
  } else {
    device.pool().ParallelFor(count, body);
  }
}

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

}  // namespace baton::kernels::cpu

#endif  // BATON_KERNELS_CPU_PARALLEL_H_
