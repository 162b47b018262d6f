#ifndef BATON_KERNELS_DRAW_WEIGHT_H_
#define BATON_KERNELS_DRAW_WEIGHT_H_

// Which token a row draws must not depend on where it is drawn, nor on how many threads add up the
// weights. So weights are integers, whose sums have no order, and the exponential is this one and
// no library's. For host and device code alike: nothing but arithmetic that IEEE 754 fixes, never
// contracted to fused multiply-adds.

#include <bit>
#include <cstdint>

namespace baton::kernels {

// The best token weighs 2^42: tokens less than 1e-13 as likely weigh nothing, and the sum over a
// vocabulary of kMaxVocabulary stays below 2^63.
inline constexpr int kWeightBits = 42;
inline constexpr int64_t kMaxVocabulary = int64_t{1} << 21;

// 2^42 * exp(x), rounded to the nearest integer, for x <= 0. Taylor's series of degree 13 around
// the nearest multiple of log 2, at most 0.35 away: its error is below a unit of double's last
// place.
constexpr uint64_t ScaledExp(double x) {
  if (!(x > -30.0)) return 0;
  const int power = static_cast<int>(x * 1.4426950408889634 - 0.5);
  // log 2 in two parts, the first of which has zeros enough to make its product exact.
  const double r = (x - power * 0x1.62e42feep-1) - power * 0x1.a39ef35793c76p-33;
  double y = 1.0 / 6227020800.0;
  y = y * r + 1.0 / 479001600.0;
  y = y * r + 1.0 / 39916800.0;
  y = y * r + 1.0 / 3628800.0;
  y = y * r + 1.0 / 362880.0;
  y = y * r + 1.0 / 40320.0;
  y = y * r + 1.0 / 5040.0;
  y = y * r + 1.0 / 720.0;
  y = y * r + 1.0 / 120.0;
  y = y * r + 1.0 / 24.0;
  y = y * r + 1.0 / 6.0;
  y = y * r + 0.5;
  y = y * r + 1.0;
  y = y * r + 1.0;
  const int64_t exponent = int64_t{1023 + kWeightBits} + power;
  const double scaled = y * std::bit_cast<double>(exponent << 52);
  const uint64_t whole = static_cast<uint64_t>(scaled);
  return whole + (scaled - static_cast<double>(whole) < 0.5 ? 0 : 1);
}

// Of a token, relative to the best one; temperature > 0.
constexpr uint64_t DrawWeight(float logit, float best, float temperature) {
  return ScaledExp((static_cast<double>(logit) - static_cast<double>(best)) /
                   static_cast<double>(temperature));
}

constexpr uint64_t RoundUp(double x) {
  const uint64_t whole = static_cast<uint64_t>(x);
  return whole + (static_cast<double>(whole) < x ? 1 : 0);
}

// What a token must weigh to be kept by min_p; never 0, which nothing draws.
constexpr uint64_t LeastWeight(float min_p) {
  const uint64_t least = RoundUp(static_cast<double>(min_p) * (uint64_t{1} << kWeightBits));
  return least == 0 ? 1 : least;
}

// The weight that the tokens kept by top_p reach, of `mass` > 0 in all.
constexpr uint64_t WantedMass(float top_p, uint64_t mass) {
  const uint64_t wanted = RoundUp(static_cast<double>(top_p) * static_cast<double>(mass));
  return wanted < mass ? wanted : mass;
}

// Where in [0, mass) a draw of 53 bits falls.
constexpr uint64_t DrawTarget(uint64_t bits, uint64_t mass) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(bits) * mass >> 53);
}

}  // namespace baton::kernels

#endif  // BATON_KERNELS_DRAW_WEIGHT_H_
