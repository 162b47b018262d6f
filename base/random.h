#ifndef BATON_BASE_RANDOM_H_
#define BATON_BASE_RANDOM_H_

// Two generators, both pure values with the same output on every machine.
//  - Rng: a seeded stream (SplitMix64) for simulation, tests and jitter.
//  - Philox4x32: counter-based (Salmon et al., SC'11): the draw for (seed, position) needs no
//  state, so a resumed
//    request draws what it would have drawn. 10 rounds.

#include <array>
#include <cstdint>

namespace baton {

// SplitMix64 (Steele et al., OOPSLA'14): one 64-bit state, period 2^64.
class Rng {
 public:
  explicit constexpr Rng(uint64_t seed) : state_(seed) {}
  constexpr uint64_t Next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  // Uniform in [0, bound); bound > 0. Bias below 2^-32 for bounds below 2^32.
  constexpr uint64_t Below(uint64_t bound) {
    return static_cast<uint64_t>((static_cast<unsigned __int128>(Next()) * bound) >> 64);
  }
  // Uniform in [0, 1).
  constexpr double Uniform() { return static_cast<double>(Next() >> 11) * 0x1.0p-53; }
  // True with probability p.
  constexpr bool Chance(double p) { return Uniform() < p; }
  // An independent generator, so that one consumer's draws do not shift another's.
  constexpr Rng Fork() { return Rng(Next()); }

 private:
  uint64_t state_;
};

// The four 32-bit outputs of Philox4x32-10 for a 128-bit counter and a 64-bit key.
constexpr std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter,
                                             std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(p1 >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(p1),
               static_cast<uint32_t>(p0 >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(p0)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

}  // namespace baton

#endif  // BATON_BASE_RANDOM_H_
