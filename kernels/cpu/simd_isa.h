// Vectors of F32 for one instruction set (see foreach_isa.h; no include guard). V holds kLanes
// floats. Every function works lane by lane and gives a lane the same result wherever it stands, so
// a short row padded to a full vector gets the bits of the same values inside a long one. Sum adds
// in a fixed tree.

namespace baton::kernels::cpu::BATON_ISA {

#define BATON_INLINE inline __attribute__((always_inline))
// Before a loop with a small constant count: unrolled whole, so that arrays of V become registers.
#define BATON_UNROLL _Pragma("GCC unroll 16")

#if BATON_ISA_LEVEL == 0

inline constexpr int kLanes = 8;
struct V {
  float f[kLanes];
};

template <typename F>
BATON_INLINE V Map(F f) {
  V r;
  for (int i = 0; i < kLanes; ++i) r.f[i] = f(i);
  return r;
}
BATON_INLINE V Set(float x) {
  return Map([&](int) { return x; });
}
BATON_INLINE V Load(const float* p) {
  return Map([&](int i) { return p[i]; });
}
BATON_INLINE V Load(const uint16_t* p) {
  return Map([&](int i) { return Bf16ToF32(p[i]); });
}
BATON_INLINE V Load(const uint8_t* p) {
  return Map([&](int i) { return kF8Values[p[i]]; });
}
BATON_INLINE void Store(float* p, V a) { std::memcpy(p, a.f, sizeof(a.f)); }
BATON_INLINE void Store(uint16_t* p, V a) {
  for (int i = 0; i < kLanes; ++i) p[i] = F32ToBf16(a.f[i]);
}
BATON_INLINE V Add(V a, V b) {
  return Map([&](int i) { return a.f[i] + b.f[i]; });
}
BATON_INLINE V Sub(V a, V b) {
  return Map([&](int i) { return a.f[i] - b.f[i]; });
}
BATON_INLINE V Mul(V a, V b) {
  return Map([&](int i) { return a.f[i] * b.f[i]; });
}
BATON_INLINE V Div(V a, V b) {
  return Map([&](int i) { return a.f[i] / b.f[i]; });
}
// Two roundings at this level, which has no instruction for one: ops.h, "ISA LEVELS".
BATON_INLINE V Fma(V a, V b, V c) {
  return Map([&](int i) { return a.f[i] * b.f[i] + c.f[i]; });
}
// b where either is NaN.
BATON_INLINE V Max(V a, V b) {
  return Map([&](int i) { return a.f[i] > b.f[i] ? a.f[i] : b.f[i]; });
}
BATON_INLINE V Min(V a, V b) {
  return Map([&](int i) { return a.f[i] < b.f[i] ? a.f[i] : b.f[i]; });
}
BATON_INLINE V Abs(V a) {
  return Map([&](int i) { return std::fabs(a.f[i]); });
}
// a < b ? x : y
BATON_INLINE V SelectLess(V a, V b, V x, V y) {
  return Map([&](int i) { return a.f[i] < b.f[i] ? x.f[i] : y.f[i]; });
}
// 2^n for whole n in [-126, 128] (128 gives infinity), from a value that carries n in its low bits:
// see Exp.
BATON_INLINE V Pow2FromMagic(V magic) {
  return Map([&](int i) {
    return std::bit_cast<float>((std::bit_cast<uint32_t>(magic.f[i]) + 127u) << 23);
  });
}
BATON_INLINE float Sum(V a) {
  return ((a.f[0] + a.f[4]) + (a.f[2] + a.f[6])) + ((a.f[1] + a.f[5]) + (a.f[3] + a.f[7]));
}
BATON_INLINE float MaxAcross(V a) {
  float best = a.f[0];
  for (int i = 1; i < kLanes; ++i) best = best > a.f[i] ? best : a.f[i];
  return best;
}

#elif BATON_ISA_LEVEL == 1

inline constexpr int kLanes = 8;
struct V {
  __m256 v;
};

BATON_INLINE V Set(float x) { return {_mm256_set1_ps(x)}; }
BATON_INLINE V Load(const float* p) { return {_mm256_loadu_ps(p)}; }
BATON_INLINE V Load(const uint16_t* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
}
// By way of FP16, whose hardware conversion handles subnormal codes: the code's bits stand for
// value / 256 there.
BATON_INLINE V Load(const uint8_t* p) {
  const __m128i code = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  const __m128i magnitude = _mm_and_si128(code, _mm_set1_epi16(0x7F));
  const __m128i sign = _mm_slli_epi16(_mm_andnot_si128(_mm_set1_epi16(0x7F), code), 8);
  const __m128i nan =
      _mm_and_si128(_mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7F)), _mm_set1_epi16(0x7FFF));
  const __m128i half = _mm_or_si128(_mm_or_si128(_mm_slli_epi16(magnitude, 7), sign), nan);
  return {_mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0f))};
}
BATON_INLINE void Store(float* p, V a) { _mm256_storeu_ps(p, a.v); }
BATON_INLINE void Store(uint16_t* p, V a) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(
      _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd), 16);
  const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  const __m256i wide = _mm256_blendv_epi8(rounded, quiet, is_nan);
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(p),
      _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1)));
}
BATON_INLINE V Add(V a, V b) { return {_mm256_add_ps(a.v, b.v)}; }
BATON_INLINE V Sub(V a, V b) { return {_mm256_sub_ps(a.v, b.v)}; }
BATON_INLINE V Mul(V a, V b) { return {_mm256_mul_ps(a.v, b.v)}; }
BATON_INLINE V Div(V a, V b) { return {_mm256_div_ps(a.v, b.v)}; }
BATON_INLINE V Fma(V a, V b, V c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
BATON_INLINE V Max(V a, V b) { return {_mm256_max_ps(a.v, b.v)}; }
BATON_INLINE V Min(V a, V b) { return {_mm256_min_ps(a.v, b.v)}; }
BATON_INLINE V Abs(V a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
BATON_INLINE V SelectLess(V a, V b, V x, V y) {
  return {_mm256_blendv_ps(y.v, x.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
}
BATON_INLINE V Pow2FromMagic(V magic) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(
      _mm256_add_epi32(_mm256_castps_si256(magic.v), _mm256_set1_epi32(127)), 23))};
}
BATON_INLINE float Sum(V a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
BATON_INLINE float MaxAcross(V a) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

#else

inline constexpr int kLanes = 16;
struct V {
  __m512 v;
};

BATON_INLINE V Set(float x) { return {_mm512_set1_ps(x)}; }
BATON_INLINE V Load(const float* p) { return {_mm512_loadu_ps(p)}; }
BATON_INLINE V Load(const uint16_t* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
// As for AVX2.
BATON_INLINE V Load(const uint8_t* p) {
  const __m256i code = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m256i magnitude = _mm256_and_si256(code, _mm256_set1_epi16(0x7F));
  const __m256i sign = _mm256_slli_epi16(_mm256_andnot_si256(_mm256_set1_epi16(0x7F), code), 8);
  const __m256i nan = _mm256_and_si256(_mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x7F)),
                                       _mm256_set1_epi16(0x7FFF));
  const __m256i half = _mm256_or_si256(_mm256_or_si256(_mm256_slli_epi16(magnitude, 7), sign), nan);
  return {_mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0f))};
}
BATON_INLINE void Store(float* p, V a) { _mm512_storeu_ps(p, a.v); }
BATON_INLINE void Store(uint16_t* p, V a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(
      _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd), 16);
  const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, is_nan, quiet)));
}
BATON_INLINE V Add(V a, V b) { return {_mm512_add_ps(a.v, b.v)}; }
BATON_INLINE V Sub(V a, V b) { return {_mm512_sub_ps(a.v, b.v)}; }
BATON_INLINE V Mul(V a, V b) { return {_mm512_mul_ps(a.v, b.v)}; }
BATON_INLINE V Div(V a, V b) { return {_mm512_div_ps(a.v, b.v)}; }
BATON_INLINE V Fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
BATON_INLINE V Max(V a, V b) { return {_mm512_max_ps(a.v, b.v)}; }
BATON_INLINE V Min(V a, V b) { return {_mm512_min_ps(a.v, b.v)}; }
BATON_INLINE V Abs(V a) { return {_mm512_abs_ps(a.v)}; }
BATON_INLINE V SelectLess(V a, V b, V x, V y) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), y.v, x.v)};
}
BATON_INLINE V Pow2FromMagic(V magic) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(
      _mm512_add_epi32(_mm512_castps_si512(magic.v), _mm512_set1_epi32(127)), 23))};
}
BATON_INLINE float Sum(V a) {
  const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a.v), high);
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
BATON_INLINE float MaxAcross(V a) { return _mm512_reduce_max_ps(a.v); }

#endif

BATON_INLINE V Zero() { return Set(0.0f); }

// The first n < kLanes elements, zeros behind them.
template <typename T>
BATON_INLINE V LoadN(const T* p, int64_t n) {
  T padded[kLanes] = {};
  std::memcpy(padded, p, static_cast<size_t>(n) * sizeof(T));
  return Load(padded);
}
template <typename T>
BATON_INLINE void StoreN(T* p, V a, int64_t n) {
  T padded[kLanes];
  Store(padded, a);
  std::memcpy(p, padded, static_cast<size_t>(n) * sizeof(T));
}

// body(i, load, store) for each vector of a row of n elements, the last one padded: load(p) and
// store(p, v) act on p[i...].
template <typename Body>
BATON_INLINE void ForVectors(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    body(
        i, [i](const auto* p) __attribute__((always_inline)) { return Load(p + i); },
        [i](auto* p, V v) __attribute__((always_inline)) { Store(p + i, v); });
  }
  if (i < n) {
    const int64_t rest = n - i;
    body(
        i, [i, rest](const auto* p) { return LoadN(p + i, rest); },
        [i, rest](auto* p, V v) { StoreN(p + i, v, rest); });
  }
}

// e^x: x = n ln 2 + r with |r| <= ln 2 / 2, a Taylor polynomial of degree 7 for e^r (below 1 ulp
// with the rounding of Horner's rule), times 2^n. Results below the smallest normal number become
// 0, above 2^127.5 infinity; NaN stays.
BATON_INLINE V Exp(V x) {
  const V low = Set(-87.33654f);
  const V clamped = Min(Set(89.0f), Max(low, x));
  // Adding 1.5 * 2^23 leaves round(x / ln 2) in the low bits of the sum.
  const V magic = Fma(clamped, Set(1.44269504f), Set(12582912.0f));
  const V n = Sub(magic, Set(12582912.0f));
  const V r = Fma(n, Set(-1.42860677e-6f), Fma(n, Set(-0.693145752f), clamped));
  V p = Set(1.98412698e-4f);
  p = Fma(p, r, Set(1.38888889e-3f));
  p = Fma(p, r, Set(8.33333333e-3f));
  p = Fma(p, r, Set(4.16666667e-2f));
  p = Fma(p, r, Set(1.66666667e-1f));
  p = Fma(p, r, Set(0.5f));
  p = Fma(p, r, Set(1.0f));
  p = Fma(p, r, Set(1.0f));
  return SelectLess(x, low, Zero(), Mul(p, Pow2FromMagic(magic)));
}

BATON_INLINE V Silu(V z) { return Div(z, Add(Set(1.0f), Exp(Sub(Zero(), z)))); }
BATON_INLINE V Sigmoid(V z) { return Div(Set(1.0f), Add(Set(1.0f), Exp(Sub(Zero(), z)))); }

}  // namespace baton::kernels::cpu::BATON_ISA
