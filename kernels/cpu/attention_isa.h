// attention.h for one instruction set (see foreach_isa.h; no include guard).

#include "kernels/cpu/rows_isa.h"

namespace baton::kernels::cpu::BATON_ISA {

inline constexpr int kScoreVectors = kKeyBlock / kLanes;
inline constexpr int kRowTile = BATON_ISA_LEVEL >= 2 ? 4 : BATON_ISA_LEVEL == 1 ? 2 : 1;
inline constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// scores[kKeyBlock] to exp(score * scale - best), zeros at and behind `visible`; updates best and
// sum; returns by what the values accumulated so far must be multiplied.
inline float SoftmaxStep(float* scores, int64_t visible, float scale, float* best, float* sum) {
  for (int64_t j = visible; j < kKeyBlock; ++j) scores[j] = kMinusInfinity;
  V high = Set(kMinusInfinity);
  V scaled[kScoreVectors];
  BATON_UNROLL
  for (int i = 0; i < kScoreVectors; ++i) {
    scaled[i] = Load(scores + i * kLanes);
  }
  // A masked score is -inf before and after scaling, for the scale is positive.
  BATON_UNROLL
  for (int i = 0; i < kScoreVectors; ++i) {
    scaled[i] = Mul(scaled[i], Set(scale));
    high = Max(high, scaled[i]);
  }
  const float block_best = MaxAcross(high);
  const float old_best = *best;
  const float new_best = block_best > old_best ? block_best : old_best;
  // All scores -inf: shifting by -inf would make NaN of them.
  const float shift = new_best == kMinusInfinity ? 0.0f : new_best;
  V total = Zero();
  BATON_UNROLL
  for (int i = 0; i < kScoreVectors; ++i) {
    const V p = Exp(Sub(scaled[i], Set(shift)));
    total = Add(total, p);
    Store(scores + i * kLanes, p);
  }
  float factor[kLanes];
  Store(factor, Exp(Set(old_best - shift)));
  *sum = *sum * factor[0] + Sum(total);
  *best = new_best;
  return factor[0];
}

// acc[r] = acc[r] * factor[r] + sum over j < n of p[r][j] * values[j], for R rows at once and G
// vectors of columns.
template <int R, int G>
void AccumulateTile(const float* p, const float* values, int64_t value_stride, int64_t n,
                    const float* factor, float* acc, int64_t acc_stride) {
  V sum[R][G];
  BATON_UNROLL
  for (int r = 0; r < R; ++r) {
    BATON_UNROLL
    for (int g = 0; g < G; ++g) {
      sum[r][g] = Mul(Load(acc + r * acc_stride + g * kLanes), Set(factor[r]));
    }
  }
  for (int64_t j = 0; j < n; ++j) {
    V value[G];
    BATON_UNROLL
    for (int g = 0; g < G; ++g) value[g] = Load(values + j * value_stride + g * kLanes);
    BATON_UNROLL
    for (int r = 0; r < R; ++r) {
      const V weight = Set(p[r * kKeyBlock + j]);
      BATON_UNROLL
      for (int g = 0; g < G; ++g) sum[r][g] = Fma(weight, value[g], sum[r][g]);
    }
  }
  BATON_UNROLL
  for (int r = 0; r < R; ++r) {
    BATON_UNROLL
    for (int g = 0; g < G; ++g) Store(acc + r * acc_stride + g * kLanes, sum[r][g]);
  }
}

template <int R>
void Accumulate(const float* p, const float* values, int64_t value_stride, int64_t n,
                const float* factor, float* acc, int64_t width) {
  constexpr int kGroup = 4;
  int64_t column = 0;
  for (; column + kGroup * kLanes <= width; column += kGroup * kLanes) {
    AccumulateTile<R, kGroup>(p, values + column, value_stride, n, factor, acc + column, width);
  }
  for (; column < width; column += kLanes) {
    AccumulateTile<R, 1>(p, values + column, value_stride, n, factor, acc + column, width);
  }
}

// scores[r][j] = q[r] . key j, each a sum over d in ascending order.
template <int R>
void ScoreTile(const PrefillBlock& block, int64_t row) {
  constexpr int kVectors = 4;
  const float* q = block.q + row * block.q_stride;
  for (int column = 0; column < kKeyBlock; column += kVectors * kLanes) {
    V sum[R][kVectors];
    BATON_UNROLL
    for (int r = 0; r < R; ++r) {
      BATON_UNROLL
      for (int i = 0; i < kVectors; ++i) sum[r][i] = Zero();
    }
    for (int64_t d = 0; d < block.depth; ++d) {
      V key[kVectors];
      BATON_UNROLL
      for (int i = 0; i < kVectors; ++i) {
        key[i] = Load(block.keys + d * kKeyBlock + column + i * kLanes);
      }
      BATON_UNROLL
      for (int r = 0; r < R; ++r) {
        const V value = Set(q[r * block.q_stride + d]);
        BATON_UNROLL
        for (int i = 0; i < kVectors; ++i) sum[r][i] = Fma(value, key[i], sum[r][i]);
      }
    }
    BATON_UNROLL
    for (int r = 0; r < R; ++r) {
      BATON_UNROLL
      for (int i = 0; i < kVectors; ++i) {
        Store(block.scores + r * kKeyBlock + column + i * kLanes, sum[r][i]);
      }
    }
  }
}

// R rows that all see `visible` keys of the block.
template <int R>
void AttendRows(const PrefillBlock& block, int64_t row, int64_t visible) {
  ScoreTile<R>(block, row);
  const AttentionState state = block.state.From(row);
  float factor[R];
  for (int r = 0; r < R; ++r) {
    factor[r] = SoftmaxStep(block.scores + r * kKeyBlock, visible, block.scale, state.best + r,
                            state.sum + r);
  }
  Accumulate<R>(block.scores, block.values, state.width, visible, factor, state.acc, state.width);
}

inline void AttendPrefill(const PrefillBlock& block) {
  int64_t row = std::max<int64_t>(0, 1 - block.first_visible);
  while (row < block.rows) {
    const int64_t visible = std::min<int64_t>(kKeyBlock, block.first_visible + row);
    // Rows that share a tile see the same keys: only whole blocks qualify, later rows then see them
    // whole too.
    if (visible == kKeyBlock && row + kRowTile <= block.rows) {
      AttendRows<kRowTile>(block, row, visible);
      row += kRowTile;
    } else {
      AttendRows<1>(block, row, visible);
      ++row;
    }
  }
}

template <int R>
void AttendItems(const DecodeBlock& block, int64_t item) {
  float* scores = block.scores + item * kKeyBlock;
  const AttentionState state = block.state.From(item);
  float factor[R];
  for (int r = 0; r < R; ++r) {
    factor[r] = SoftmaxStep(scores + r * kKeyBlock, block.visible, block.scale, state.best + r,
                            state.sum + r);
  }
  Accumulate<R>(scores, block.values, block.value_stride, block.visible, factor, state.acc,
                state.width);
}

inline void AttendDecode(const DecodeBlock& block) {
  int64_t item = 0;
  for (; item + kRowTile <= block.items; item += kRowTile) AttendItems<kRowTile>(block, item);
  for (; item < block.items; ++item) AttendItems<1>(block, item);
}

inline void FoldState(const AttentionState& part, int64_t rows, const AttentionState& into) {
  for (int64_t r = 0; r < rows; ++r) {
    const float best = part.best[r] > into.best[r] ? part.best[r] : into.best[r];
    const float shift = best == kMinusInfinity ? 0.0f : best;
    float keep[kLanes], take[kLanes];
    Store(keep, Exp(Set(into.best[r] - shift)));
    Store(take, Exp(Set(part.best[r] - shift)));
    into.best[r] = best;
    into.sum[r] = into.sum[r] * keep[0] + part.sum[r] * take[0];
    float* acc = into.acc + r * into.width;
    for (int64_t c = 0; c < into.width; c += kLanes) {
      const V kept = Mul(Load(acc + c), Set(keep[0]));
      Store(acc + c, Fma(Load(part.acc + r * part.width + c), Set(take[0]), kept));
    }
  }
}

inline void FinishState(const AttentionState& state, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    float* acc = state.acc + r * state.width;
    for (int64_t c = 0; c < state.width; c += kLanes) {
      Store(acc + c, Div(Load(acc + c), Set(state.sum[r])));
    }
  }
}

inline void WidenEntry(const KvPages& pages, const uint8_t* entry, float* latent, float* rotary) {
  if (pages.format == KvFormat::kF32) {
    std::memcpy(latent, entry, static_cast<size_t>(pages.kv_lora) * 4);
    std::memcpy(rotary, entry + RopeOffset(pages), static_cast<size_t>(pages.rope) * 4);
    return;
  }
  if (pages.format == KvFormat::kBF16) {
    WidenTyped(reinterpret_cast<const uint16_t*>(entry), pages.kv_lora, latent);
  } else {
    for (int64_t begin = 0; begin < pages.kv_lora; begin += kQuantGroup) {
      float scale;
      std::memcpy(&scale, entry + ScaleOffset(pages) + 4 * (begin / kQuantGroup), 4);
      const int64_t end = std::min<int64_t>(begin + kQuantGroup, pages.kv_lora);
      for (int64_t c = begin; c < end; c += kLanes) {
        Store(latent + c, Mul(Load(entry + c), Set(scale)));
      }
    }
  }
  WidenTyped(reinterpret_cast<const uint16_t*>(entry + RopeOffset(pages)), pages.rope, rotary);
}

}  // namespace baton::kernels::cpu::BATON_ISA
