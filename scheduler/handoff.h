#ifndef BATON_SCHEDULER_HANDOFF_H_
#define BATON_SCHEDULER_HANDOFF_H_

// The seal that ties a hand-off message's payload to its header. Both workers compute it, so it
// stands where both may look.

#include <cstdint>

#include "base/ids.h"

namespace baton::scheduler {

// What a hand-off message says about its payload.
struct HandoffPlace {
  RequestKey key;
  Epoch epoch;
  uint32_t layer = 0;
  uint32_t first_page = 0;
  uint32_t page_count = 0;
  uint32_t token_count = 0;
};

// XORed over the payload's checksum on the wire: a message whose header was damaged on its way then
// fails the payload's check instead of landing in the wrong place. A chain of SplitMix64 finishers,
// a bijection in each field, so any single damaged field changes it.
constexpr uint64_t HandoffSeal(const HandoffPlace& place) {
  uint64_t seal = 0;
  const auto mix = [&seal](uint64_t value) {
    uint64_t z = seal + value + 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    seal = z ^ (z >> 31);
  };
  mix(place.key.request.value());
  mix(place.key.attempt);
  mix(place.epoch.value());
  mix(uint64_t{place.layer} << 32 | place.first_page);
  mix(uint64_t{place.page_count} << 32 | place.token_count);
  return seal;
}

}  // namespace baton::scheduler

#endif  // BATON_SCHEDULER_HANDOFF_H_
