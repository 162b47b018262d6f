#ifndef BATON_KERNELS_NUMERIC_H_
#define BATON_KERNELS_NUMERIC_H_

// Scalar conversions between F32 and the narrow formats. The vector versions of the backends must
// agree with these on every input, bit for bit (NaN payloads aside).

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace baton::kernels {

inline float Bf16ToF32(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// Round to nearest, ties to even; NaN becomes a quiet NaN of the same sign.
inline uint16_t F32ToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

// The value of an E4M3 (fn) code: sign, 4 bits of exponent with bias 7, 3 of mantissa; S.1111.111
// is NaN, no infinities.
constexpr float F8E4M3ToF32(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 0x80u) << 24;
  const uint32_t exponent = (code >> 3) & 0xFu;
  const uint32_t mantissa = code & 0x7u;
  if ((code & 0x7Fu) == 0x7Fu) return std::bit_cast<float>(sign | 0x7FC00000u);
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-9f;
    return sign != 0 ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | ((exponent + 120u) << 23) | (mantissa << 20));
}

inline constexpr float kF8E4M3Max = 448.0f;

// Round to nearest, ties to even; magnitudes above 448 (and infinities) saturate; NaN becomes the
// NaN code.
inline uint8_t F32ToF8E4M3(float value) {
  uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 24) & 0x80u;
  bits &= 0x7FFFFFFFu;
  if (bits > 0x7F800000u) return static_cast<uint8_t>(sign | 0x7Fu);
  if (bits >= std::bit_cast<uint32_t>(kF8E4M3Max)) return static_cast<uint8_t>(sign | 0x7Eu);
  if (bits < (121u << 23)) {
    // Below 2^-6: steps of 2^-9. Adding 2^14 makes the sum's last bit worth just that, so the adder
    // rounds.
    const float shifted = std::bit_cast<float>(bits) + 0x1p14f;
    return static_cast<uint8_t>(sign | (std::bit_cast<uint32_t>(shifted) & 0xFu));
  }
  bits += 0x7FFFFu + ((bits >> 20) & 1u);
  return static_cast<uint8_t>(sign | ((bits >> 20) - (120u << 3)));
}

// Scale of one quantized group from its largest magnitude (QuantizeFp8 of ops.h).
inline float F8GroupScale(float largest) {
  if (!(largest <= std::numeric_limits<float>::max())) {
    return std::numeric_limits<float>::quiet_NaN();
  }
  const float scale = largest / kF8E4M3Max;
  return scale == 0.0f ? 1.0f : scale;
}

}  // namespace baton::kernels

#endif  // BATON_KERNELS_NUMERIC_H_
