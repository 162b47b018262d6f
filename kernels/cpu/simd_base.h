#ifndef BATON_KERNELS_CPU_SIMD_BASE_H_
#define BATON_KERNELS_CPU_SIMD_BASE_H_

// What simd_isa.h needs and must not be compiled under a level's target options: system headers and
// tables.

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/numeric.h"

namespace baton::kernels::cpu {

// High and low bytes of the BF16 form of the E4M3 codes 0..127 (the sign is bit 7 in both).
struct alignas(64) F8Tables {
  std::array<uint8_t, 128> high;
  std::array<uint8_t, 128> low;
};
constexpr F8Tables MakeF8Tables() {
  F8Tables tables{};
  for (int code = 0; code < 128; ++code) {
    const uint32_t bits = std::bit_cast<uint32_t>(F8E4M3ToF32(static_cast<uint8_t>(code)));
    tables.high[static_cast<size_t>(code)] = static_cast<uint8_t>(bits >> 24);
    tables.low[static_cast<size_t>(code)] = static_cast<uint8_t>(bits >> 16);
  }
  return tables;
}
inline constexpr F8Tables kF8Tables = MakeF8Tables();

// The same codes as F32, for levels without byte permutes.
constexpr std::array<float, 256> MakeF8Values() {
  std::array<float, 256> values{};
  for (int code = 0; code < 256; ++code) {
    values[static_cast<size_t>(code)] = F8E4M3ToF32(static_cast<uint8_t>(code));
  }
  return values;
}
inline constexpr std::array<float, 256> kF8Values = MakeF8Values();

}  // namespace baton::kernels::cpu

#endif  // BATON_KERNELS_CPU_SIMD_BASE_H_
