#ifndef BATON_KERNELS_CPU_PARALLEL_H_
#define BATON_KERNELS_CPU_PARALLEL_H_

#include <cstdint>

#include "kernels/backend.h"

namespace baton::kernels::cpu {

// Work, in elementary operations (a multiply-add), below which waking other threads costs more than
// they save: about 20 microseconds of one core, the price of a wake-up on a machine that has other
// things to do.
inline constexpr int64_t kSerialWork = int64_t{1} << 18;

// body(begin, end, thread) over [0, count): on the device's threads if count * cost is worth it,
// else on the caller's.
template <typename Body>
void ParallelFor(Device& device, int64_t count, int64_t cost, const Body& body) {
  if (count <= 0) return;
  if (count == 1 || count * cost < kSerialWork) {
    body(int64_t{0}, count, 0);
  } else {
    device.pool().ParallelFor(count, body);
  }
}

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

}  // namespace baton::kernels::cpu

#endif  // BATON_KERNELS_CPU_PARALLEL_H_
