// The products of gemm.h for one instruction set (see foreach_isa.h; no include guard).

#include "kernels/cpu/simd_isa.h"

namespace baton::kernels::cpu::BATON_ISA {

// An engine: how activations X are stored, how one step of weights becomes registers, and the
// multiply-accumulate. kStep<W> elements along K are consumed at a time, in kRegs<W> registers.
struct EngineF32 {
  using X = float;
  template <typename W>
  static constexpr int kRegs = 1;
  static constexpr int kRegElements = kLanes;
  struct Reg {
    V v;
  };
  static BATON_INLINE Reg LoadX(const float* p) { return {Load(p)}; }
  template <typename W>
  static BATON_INLINE void LoadW(const W* p, Reg (&out)[1]) {
    out[0].v = Load(p);
  }
  template <typename W>
  static BATON_INLINE void LoadWTail(const W* p, int64_t n, Reg (&out)[1]) {
    out[0].v = LoadN(p, n);
  }
  static BATON_INLINE V Dot(V sum, Reg x, Reg w) { return Fma(x.v, w.v, sum); }
};

#if BATON_ISA_LEVEL == 3

// 64 codes to two registers of 32 BF16 values in order: byte permutes look up both halves of each
// value.
BATON_INLINE void WidenF8(__m512i codes, __m512i& first, __m512i& second) {
  // Unpacking interleaves inside 128-bit lanes; this order of the source makes the results come out
  // in sequence.
  codes = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), codes);
  __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(kF8Tables.high.data()), codes,
                                          _mm512_load_si512(kF8Tables.high.data() + 64));
  const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(kF8Tables.low.data()), codes,
                                               _mm512_load_si512(kF8Tables.low.data() + 64));
  high = _mm512_ternarylogic_epi64(high, codes, _mm512_set1_epi8(static_cast<char>(0x80)), 0xF8);
  first = _mm512_unpacklo_epi8(low, high);
  second = _mm512_unpackhi_epi8(low, high);
}

struct EngineBf16 {
  using X = uint16_t;
  template <typename W>
  static constexpr int kRegs = sizeof(W) == 1 ? 2 : 1;
  static constexpr int kRegElements = 32;
  struct Reg {
    __m512i v;
  };
  static BATON_INLINE Reg LoadX(const uint16_t* p) { return {_mm512_loadu_si512(p)}; }
  static BATON_INLINE void LoadW(const uint16_t* p, Reg (&out)[1]) {
    out[0].v = _mm512_loadu_si512(p);
  }
  static BATON_INLINE void LoadW(const uint8_t* p, Reg (&out)[2]) {
    WidenF8(_mm512_loadu_si512(p), out[0].v, out[1].v);
  }
  static BATON_INLINE void LoadWTail(const uint16_t* p, int64_t n, Reg (&out)[1]) {
    out[0].v = _mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << n) - 1), p);
  }
  static BATON_INLINE void LoadWTail(const uint8_t* p, int64_t n, Reg (&out)[2]) {
    WidenF8(_mm512_maskz_loadu_epi8((uint64_t{1} << n) - 1, p), out[0].v, out[1].v);
  }
  static BATON_INLINE V Dot(V sum, Reg x, Reg w) {
    return {
        _mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(x.v), reinterpret_cast<__m512bh>(w.v))};
  }
};

#endif

inline constexpr int kMaxTileRows = BATON_ISA_LEVEL >= 2 ? 4 : BATON_ISA_LEVEL == 1 ? 2 : 1;
inline constexpr int kTileColumns = BATON_ISA_LEVEL == 0 ? 2 : 4;

// Which block scales a product has.
enum class Scaled : uint8_t { kNo, kWeights, kBoth };

// Pointers of one register tile.
template <typename X, typename W>
struct Tile {
  const X* x[4];
  const W* w[4];
  const float* scales[4];    // of weight row c, one for each block of K; unused without scales
  const float* x_scales[4];  // of row r, likewise
  float* out;
  int64_t row_stride, column_stride;
  int64_t depth, block;  // block: depth of one scale, or the whole depth
};

template <typename E, typename W, int R, int C, Scaled kScaled>
void MultiplyTile(const Tile<typename E::X, W>& tile) {
  using Reg = typename E::Reg;
  constexpr int kRegs = E::template kRegs<W>;
  constexpr int kStep = kRegs * E::kRegElements;
  V total[R][C];
  BATON_UNROLL
  for (int r = 0; r < R; ++r) {
    BATON_UNROLL
    for (int c = 0; c < C; ++c) total[r][c] = Zero();
  }
  const typename E::X* x_rows[R];
  const W* w_rows[C];
  BATON_UNROLL
  for (int r = 0; r < R; ++r) x_rows[r] = tile.x[r];
  BATON_UNROLL
  for (int c = 0; c < C; ++c) w_rows[c] = tile.w[c];
  const int64_t depth = tile.depth, block = tile.block;
  int64_t block_index = 0;
  for (int64_t begin = 0; begin < depth; begin += block, ++block_index) {
    const int64_t end = std::min(depth, begin + block);
    V part[R][C];
    BATON_UNROLL
    for (int r = 0; r < R; ++r) {
      BATON_UNROLL
      for (int c = 0; c < C; ++c) part[r][c] = Zero();
    }
    // rest: how many elements of the step exist, 0 for all.
    const auto step = [&](int64_t k, int64_t rest) __attribute__((always_inline)) {
      Reg x[R][kRegs];
      BATON_UNROLL
      for (int r = 0; r < R; ++r) {
        BATON_UNROLL
        for (int i = 0; i < kRegs; ++i) x[r][i] = E::LoadX(x_rows[r] + k + i * E::kRegElements);
      }
      BATON_UNROLL
      for (int c = 0; c < C; ++c) {
        Reg w[kRegs];
        if (rest == 0) {
          E::LoadW(w_rows[c] + k, w);
        } else {
          E::LoadWTail(w_rows[c] + k, rest, w);
        }
        BATON_UNROLL
        for (int r = 0; r < R; ++r) {
          BATON_UNROLL
          for (int i = 0; i < kRegs; ++i) part[r][c] = E::Dot(part[r][c], x[r][i], w[i]);
        }
      }
    };
    int64_t k = begin;
    for (; k + kStep <= end; k += kStep) step(k, 0);
    if (k < end) step(k, end - k);
    BATON_UNROLL
    for (int r = 0; r < R; ++r) {
      BATON_UNROLL
      for (int c = 0; c < C; ++c) {
        if constexpr (kScaled == Scaled::kNo) {
          total[r][c] = part[r][c];
        } else {
          float scale = tile.scales[c][block_index];
          if constexpr (kScaled == Scaled::kBoth) scale *= tile.x_scales[r][block_index];
          total[r][c] = Fma(part[r][c], Set(scale), total[r][c]);
        }
      }
    }
  }
  BATON_UNROLL
  for (int r = 0; r < R; ++r) {
    BATON_UNROLL
    for (int c = 0; c < C; ++c) {
      tile.out[r * tile.row_stride + c * tile.column_stride] = Sum(total[r][c]);
    }
  }
}

template <typename E, typename W, int C, Scaled kScaled>
void MultiplyRows(const GemmCall& call, Tile<typename E::X, W>& tile, float* out) {
  using X = typename E::X;
  const X* data = static_cast<const X*>(call.x.data);
  const auto fill = [&](int64_t row, int count) {
    for (int r = 0; r < count; ++r) {
      const int64_t source = call.x.index == nullptr ? row + r : call.x.index[row + r];
      tile.x[r] = data + source * call.x.stride;
      if constexpr (kScaled == Scaled::kBoth) {
        tile.x_scales[r] = call.x.scales + source * call.x.scale_stride;
      }
    }
    tile.out = out + (row - call.row_begin) * call.row_stride;
  };
  int64_t row = call.row_begin;
  if constexpr (kMaxTileRows >= 4) {
    for (; row + 4 <= call.row_end; row += 4) {
      fill(row, 4);
      MultiplyTile<E, W, 4, C, kScaled>(tile);
    }
  }
  if constexpr (kMaxTileRows >= 2) {
    for (; row + 2 <= call.row_end; row += 2) {
      fill(row, 2);
      MultiplyTile<E, W, 2, C, kScaled>(tile);
    }
  }
  for (; row < call.row_end; ++row) {
    fill(row, 1);
    MultiplyTile<E, W, 1, C, kScaled>(tile);
  }
}

// Columns [n, n + count) whose weights lie at `w`, `w_stride` elements apart.
template <typename E, typename W, Scaled kScaled>
void MultiplyColumns(const GemmCall& call, const W* w, int64_t w_stride, int64_t n, int64_t count) {
  const Weight& weight = *call.w;
  Tile<typename E::X, W> tile{};
  tile.depth = weight.w.dim(1);
  tile.block = kScaled != Scaled::kNo ? weight.block_k : tile.depth;
  tile.row_stride = call.row_stride;
  tile.column_stride = call.column_stride;
  int64_t c = 0;
  while (c < count) {
    const int columns = count - c >= kTileColumns ? kTileColumns : 1;
    for (int i = 0; i < columns; ++i) {
      tile.w[i] = w + (c + i) * w_stride;
      if (kScaled != Scaled::kNo)
        tile.scales[i] =
            weight.scales.row<const float>((weight.first_row + n + c + i) / weight.block_n);
    }
    float* out = call.out + (n + c - call.n_begin) * call.column_stride;
    if (columns == kTileColumns) {
      MultiplyRows<E, W, kTileColumns, kScaled>(call, tile, out);
    } else {
      MultiplyRows<E, W, 1, kScaled>(call, tile, out);
    }
    c += columns;
  }
}

// A row of narrow weights as the engine's own element type, padded with zeros.
template <typename W>
void WidenRow(const W* from, int64_t depth, float* to) {
  ForVectors(depth, [&](int64_t, const auto& load, const auto& store) { store(to, load(from)); });
}
#if BATON_ISA_LEVEL == 3
inline void WidenRow(const uint8_t* from, int64_t depth, uint16_t* to) {
  for (int64_t k = 0; k < depth; k += 64) {
    const int64_t n = std::min<int64_t>(64, depth - k);
    const __mmask64 mask = n == 64 ? ~uint64_t{0} : (uint64_t{1} << n) - 1;
    __m512i first, second;
    WidenF8(_mm512_maskz_loadu_epi8(mask, from + k), first, second);
    _mm512_storeu_si512(to + k, first);
    _mm512_storeu_si512(to + k + 32, second);
  }
}
#endif

// From this many rows on it pays to widen a tile of columns once instead of once for each register
// tile.
inline constexpr int64_t kWidenRows = 5;

template <typename E, typename W, Scaled kScaled>
void MultiplyWeight(const GemmCall& call) {
  using X = typename E::X;
  const Weight& weight = *call.w;
  const int64_t depth = weight.w.dim(1), padded = PaddedDepth(depth);
  const bool widen = sizeof(W) < sizeof(X) && call.row_end - call.row_begin >= kWidenRows;
  for (int64_t n = call.n_begin; n < call.n_end; n += kColumnTile) {
    const int64_t count = std::min<int64_t>(kColumnTile, call.n_end - n);
    if (!widen) {
      MultiplyColumns<E, W, kScaled>(call, weight.w.row<const W>(n), weight.w.strides[0], n, count);
      continue;
    }
    if constexpr (sizeof(W) < sizeof(X)) {
      X* widened = reinterpret_cast<X*>(call.widened);
      for (int64_t c = 0; c < count; ++c) {
        WidenRow(weight.w.row<const W>(n + c), depth, widened + c * padded);
      }
      MultiplyColumns<E, X, kScaled>(call, widened, padded, n, count);
    }
  }
}

inline void Multiply(const GemmCall& call) {
#if BATON_ISA_LEVEL == 3
  if (call.x.bf16) {
    if (call.w->w.dtype == DType::kBF16) {
      return MultiplyWeight<EngineBf16, uint16_t, Scaled::kNo>(call);
    }
    if (call.x.scales != nullptr) return MultiplyWeight<EngineBf16, uint8_t, Scaled::kBoth>(call);
    return MultiplyWeight<EngineBf16, uint8_t, Scaled::kWeights>(call);
  }
#endif
  switch (call.w->w.dtype) {
    case DType::kBF16:
      return MultiplyWeight<EngineF32, uint16_t, Scaled::kNo>(call);
    case DType::kF8E4M3:
      if (call.x.scales != nullptr) return MultiplyWeight<EngineF32, uint8_t, Scaled::kBoth>(call);
      return MultiplyWeight<EngineF32, uint8_t, Scaled::kWeights>(call);
    default:
      return MultiplyWeight<EngineF32, float, Scaled::kNo>(call);
  }
}

// Row t of x as an engine reads it, with zeros up to the padded depth.
inline void PackRow(const TensorView& x, int64_t t, bool bf16, void* out) {
  const int64_t depth = x.dim(1), padded = PaddedDepth(depth);
  if (bf16) {
    uint16_t* to = static_cast<uint16_t*>(out);
#if BATON_ISA_LEVEL == 3
    if (x.dtype == DType::kF8E4M3) {
      WidenRow(x.row<const uint8_t>(t), depth, to);
      std::fill(to + depth, to + padded, uint16_t{0});
      return;
    }
#endif
    std::memcpy(to, x.row<const uint16_t>(t), static_cast<size_t>(depth) * 2);
    std::fill(to + depth, to + padded, uint16_t{0});
    return;
  }
  float* to = static_cast<float*>(out);
  if (x.dtype == DType::kF32) {
    std::memcpy(to, x.row<const float>(t), static_cast<size_t>(depth) * 4);
  } else if (x.dtype == DType::kF8E4M3) {
    WidenRow(x.row<const uint8_t>(t), depth, to);
  } else {
    WidenRow(x.row<const uint16_t>(t), depth, to);
  }
  std::fill(to + depth, to + padded, 0.0f);
}

template <typename Out>
void FinishRow(Epilogue epilogue, const float* a, const float* b, int64_t n, Out* out) {
  ForVectors(n, [&](int64_t, const auto& load, const auto& store) {
    V value = load(a);
    if (epilogue == Epilogue::kSiluMul) value = Mul(Silu(value), load(b));
    if (epilogue == Epilogue::kAdd) value = Add(load(static_cast<const Out*>(out)), value);
    store(out, value);
  });
}

// Applies the epilogue to n sums `a` (and `b` of the second matrix) and writes them at column
// `column` of row `row`.
inline void FinishTo(Epilogue epilogue, const float* a, const float* b, int64_t n,
                     const TensorView& out, int64_t row, int64_t column) {
  if (out.dtype == DType::kF32) {
    FinishRow(epilogue, a, b, n, out.row<float>(row) + column);
  } else {
    FinishRow(epilogue, a, b, n, out.row<uint16_t>(row) + column);
  }
}

}  // namespace baton::kernels::cpu::BATON_ISA
