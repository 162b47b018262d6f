#include "base/clock.h"

#include <chrono>

namespace baton {

Tick MonotonicClock::Now() {
  return Tick::FromNanos(std::chrono::duration_cast<std::chrono::nanoseconds>(
                             std::chrono::steady_clock::now().time_since_epoch())
                             .count());
}

}  // namespace baton
