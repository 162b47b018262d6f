// Tokens are ordered by a key of 53 bits: the logit's bits, made to ascend, then the id's
// complement. Keys differ from token to token, so "the best k" and "the shortest prefix whose
// weight reaches w" are each one threshold, found digit by digit from counts or weights of the
// digit's values. Weights are integers (draw_weight.h): no sum below has an order that matters, but
// that of the logprob.

#include "kernels/cuda/sample.h"

#include <bit>
#include <cfloat>

#include "kernels/cuda/block_sum.h"
#include "kernels/draw_weight.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kIdBits = 21;
constexpr int kKeyBits = 32 + kIdBits;
constexpr uint32_t kIdMask = (1u << kIdBits) - 1;
static_assert(kMaxVocabulary == int64_t{1} << kIdBits);
constexpr uint64_t kNotANumber = ~uint64_t{0};
constexpr float kLog2E = 1.4426950408889634f;

// 0 for a masked token, kNotANumber for NaN and +infinity.
BATON_DEVICE uint64_t KeyOf(float logit, int id) {
  if (!(logit <= FLT_MAX)) return kNotANumber;
  if (logit < -FLT_MAX) return 0;
  logit += 0.0f;  // -0 is 0
  const uint32_t bits = std::bit_cast<uint32_t>(logit);
  const uint32_t ascending = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  return uint64_t{ascending} << kIdBits | (kIdMask - static_cast<uint32_t>(id));
}
BATON_DEVICE int IdOf(uint64_t key) {
  return static_cast<int>(kIdMask - (static_cast<uint32_t>(key) & kIdMask));
}

template <int kThreads>
struct SampleShared {
  uint64_t warps[2][kThreads / kWarpSize];
  BlockSum<kThreads> exps;
  // One for each value of a digit; 64-bit sums in two halves.
  int32_t low[kThreads];
  int32_t high[kThreads];
  struct Choice {
    uint64_t digit, left;
    bool whole;
  } choice;
  uint64_t top[kMostLogprobs];
  int32_t top_count;
  int32_t token;
};

// One row's work by one block. Every member is called by all threads together, and returns the same
// to all.
template <int kThreads>
struct RowSampler {
  static constexpr int kWarps = kThreads / kWarpSize;
  static constexpr int kDigitBits = kThreads == 512 ? 9 : 5;
  static_assert(kThreads == 1 << kDigitBits);

  SampleShared<kThreads>& shared;
  int vocabulary;
  int turn = 0;  // which half of `warps` is free: whoever fills it again has passed a barrier
                 // behind its last readers

  // The warps' values, side by side.
  BATON_DEVICE const uint64_t* Exchange(uint64_t of_warp) {
    uint64_t* const warps = shared.warps[turn];
    turn ^= 1;
    if (Lane() == 0) warps[Warp()] = of_warp;
    SyncBlock();
    return warps;
  }

  // The best token's key.
  BATON_DEVICE uint64_t BestKey(const float* logits) {
    uint64_t best = 0;
    for (int i = ThreadIndex(); i < vocabulary; i += kThreads) {
      const uint64_t key = KeyOf(logits[i], i);
      best = key > best ? key : best;
    }
#pragma unroll
    for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
      const uint64_t other = ShuffleXor(best, mask);
      best = other > best ? other : best;
    }
    const uint64_t* const warps = Exchange(best);
    for (int i = 0; i < kWarps; ++i) best = warps[i] > best ? warps[i] : best;
    return best;
  }

  BATON_DEVICE void Penalize(const SampleRow& row, const float* raw) {
    for (int i = ThreadIndex(); i < vocabulary; i += kThreads) row.penalized[i] = raw[i];
    SyncBlock();
    for (int i = ThreadIndex(); i < row.seen_count; i += kThreads) {
      const SeenToken seen = row.seen[i];
      float logit = row.penalized[seen.token];
      if (logit < -FLT_MAX) continue;
      logit = logit > 0.0f ? logit / row.repetition_penalty : logit * row.repetition_penalty;
      if (seen.generated > 0) {
        logit -= row.frequency_penalty * static_cast<float>(seen.generated);
        logit -= row.presence_penalty;
      }
      logit = logit != logit ? -FLT_MAX : fminf(fmaxf(logit, -FLT_MAX), FLT_MAX);
      row.penalized[seen.token] = logit;
    }
    SyncBlock();
  }

  BATON_DEVICE void AddToBin(int bin, uint64_t value) {
    const uint32_t low = static_cast<uint32_t>(value);
    const uint32_t before =
        static_cast<uint32_t>(AtomicAdd(&shared.low[bin], static_cast<int32_t>(low)));
    const uint32_t carry = before + low < low ? 1 : 0;
    const uint32_t high = static_cast<uint32_t>(value >> 32) + carry;
    if (high != 0) AtomicAdd(&shared.high[bin], static_cast<int32_t>(high));
  }

  struct BinSums {
    uint64_t inside, above, total;  // of the thread's own bin, of all higher ones, of all
  };
  BATON_DEVICE BinSums SumBins() {
    const uint64_t inside = uint64_t{static_cast<uint32_t>(shared.high[ThreadIndex()])} << 32 |
                            static_cast<uint32_t>(shared.low[ThreadIndex()]);
    uint64_t from_here = inside;  // and the bins above in this warp
#pragma unroll
    for (int delta = 1; delta < kWarpSize; delta *= 2) {
      const uint64_t other = ShuffleDown(from_here, delta);
      if (Lane() + delta < kWarpSize) from_here += other;
    }
    const uint64_t* const warps = Exchange(from_here);
    BinSums sums{inside, from_here - inside, 0};
    for (int i = 0; i < kWarps; ++i) {
      sums.total += warps[i];
      if (i > Warp()) sums.above += warps[i];
    }
    return sums;
  }

  // The lowest key of the shortest prefix of the tokens, best first, whose sum of measure(i, key)
  // reaches what wanted(sum over all) says (> 0); 0 when all do not reach it. Masked tokens, and
  // those below `lowest`, are left out.
  template <typename Measure, typename Wanted>
  BATON_DEVICE uint64_t Threshold(const float* logits, uint64_t lowest, const Measure& measure,
                                  const Wanted& wanted) {
    uint64_t prefix = 0, left = 0;
    for (int shift = kKeyBits; shift > 0;) {
      const int next = shift > kDigitBits ? shift - kDigitBits : 0;
      const uint64_t digit_mask = (uint64_t{1} << (shift - next)) - 1;
      shared.low[ThreadIndex()] = 0;
      shared.high[ThreadIndex()] = 0;
      SyncBlock();
      for (int i = ThreadIndex(); i < vocabulary; i += kThreads) {
        const uint64_t key = KeyOf(logits[i], i);
        if (key == 0 || key < lowest || key >> shift != prefix) continue;
        const uint64_t value = measure(i);
        if (value != 0) AddToBin(static_cast<int>(key >> next & digit_mask), value);
      }
      SyncBlock();
      const BinSums sums = SumBins();
      if (shift == kKeyBits) left = wanted(sums.total);
      if (left > sums.total) return 0;
      if (sums.above < left && left <= sums.above + sums.inside) {
        shared.choice = {static_cast<uint64_t>(ThreadIndex()), left - sums.above,
                         left - sums.above == sums.inside};
      }
      SyncBlock();
      prefix = prefix << (shift - next) | shared.choice.digit;
      left = shared.choice.left;
      shift = next;
      // All of the digit's tokens: whatever follows it in the key.
      if (shared.choice.whole) return prefix << shift;
    }
    return prefix;
  }

  // Draws among the tokens at and above `lowest`, and leaves the token in shared.token.
  template <typename Weigh>
  BATON_DEVICE void Draw(uint64_t draw, const Weigh& weigh) {
    int begin = 0, end = vocabulary;
    uint64_t target = 0;
    bool first = true;
    do {
      const int part = (end - begin + kWarps - 1) / kWarps;
      const int from = begin + Warp() * part;
      const int to = from + part < end ? from + part : end;
      uint64_t sum = 0;
      for (int i = from + Lane(); i < to; i += kWarpSize) sum += weigh(i);
      const uint64_t* const warps = Exchange(WarpSum(sum));
      if (first) {
        uint64_t mass = 0;
        for (int i = 0; i < kWarps; ++i) mass += warps[i];
        target = DrawTarget(draw, mass);
        first = false;
      }
      int chosen = 0;
      while (chosen < kWarps - 1 && target >= warps[chosen]) target -= warps[chosen++];
      begin += chosen * part;
      end = begin + part < end ? begin + part : end;
    } while (end - begin > kWarpSize);
    if (Warp() == 0) {
      const int id = begin + Lane();
      const uint64_t weight = id < end ? weigh(id) : 0;
      uint64_t reached = weight;
#pragma unroll
      for (int delta = 1; delta < kWarpSize; delta *= 2) {
        const uint64_t other = ShuffleUp(reached, delta);
        if (Lane() >= delta) reached += other;
      }
      if (reached > target && reached - weight <= target) shared.token = id;
    }
    SyncBlock();
  }

  BATON_DEVICE void Choose(const SampleRow& row, const float* logits, uint64_t best_key) {
    if (row.temperature == 0.0f) {
      if (ThreadIndex() == 0) shared.token = IdOf(best_key);
      SyncBlock();
      return;
    }
    const float best = logits[IdOf(best_key)];
    uint64_t lowest = 0;
    if (row.top_k > 0 && row.top_k < vocabulary) {
      lowest = Threshold(
          logits, 0, [](int) { return uint64_t{1}; },
          [&](uint64_t) { return static_cast<uint64_t>(row.top_k); });
    }
    if (row.top_p < 1.0f) {
      const uint64_t above = Threshold(
          logits, lowest, [&](int i) { return DrawWeight(logits[i], best, row.temperature); },
          [&](uint64_t mass) { return WantedMass(row.top_p, mass); });
      lowest = above > lowest ? above : lowest;
    }
    const uint64_t least = LeastWeight(row.min_p);
    Draw(row.draw, [&](int i) {
      if (KeyOf(logits[i], i) < lowest) return uint64_t{0};
      const uint64_t weight = DrawWeight(logits[i], best, row.temperature);
      return weight < least ? uint64_t{0} : weight;
    });
  }

  // In the same order of sums for a row wherever it stands.
  BATON_DEVICE void Report(const SampleRow& row, const float* raw, uint64_t best_key,
                           SampleAnswer& answer) {
    const float best = raw[IdOf(best_key)];
    float sum = 0.0f;
    for (int i = ThreadIndex(); i < vocabulary; i += kThreads) {
      sum += Exp2((raw[i] - best) * kLog2E);
    }
    const float log_sum = logf(shared.exps.Sum(sum));
    if (ThreadIndex() == 0) {
      answer.token = shared.token;
      answer.logprob = raw[shared.token] - best - log_sum;
      shared.top_count = 0;
      if (row.top_logprobs == 0) answer.top_count = 0;
    }
    if (row.top_logprobs == 0) return;
    const uint64_t lowest = Threshold(
        raw, 0, [](int) { return uint64_t{1}; },
        [&](uint64_t tokens) {
          const uint64_t most = static_cast<uint64_t>(row.top_logprobs);
          return most < tokens ? most : tokens;
        });
    for (int i = ThreadIndex(); i < vocabulary; i += kThreads) {
      const uint64_t key = KeyOf(raw[i], i);
      if (key != 0 && key >= lowest) shared.top[AtomicAdd(&shared.top_count, 1)] = key;
    }
    SyncBlock();
    const int count = shared.top_count;
    if (ThreadIndex() == 0) answer.top_count = count;
    if (ThreadIndex() >= count) return;
    const uint64_t key = shared.top[ThreadIndex()];
    int rank = 0;
    for (int i = 0; i < count; ++i) rank += shared.top[i] > key ? 1 : 0;
    answer.top_token[rank] = IdOf(key);
    answer.top_logprob[rank] = raw[IdOf(key)] - best - log_sum;
  }
};

template <int kThreads>
BATON_KERNEL(kThreads)
SampleKernel(const SampleLaunch args) {
  RowSampler<kThreads> sampler{SharedMemory<SampleShared<kThreads>>(), args.vocabulary};
  const SampleRow& row = args.params[BlockX()];
  SampleAnswer& answer = args.answers[BlockX()];
  const float* const raw = args.logits + BlockX() * args.stride;
  const uint64_t best = sampler.BestKey(raw);
  if (best == kNotANumber || best == 0) {
    if (ThreadIndex() == 0) {
      answer.token = -1;
      answer.logprob = 0.0f;
      answer.top_count = 0;
    }
    return;
  }
  if (row.penalized != nullptr) {
    sampler.Penalize(row, raw);
    sampler.Choose(row, row.penalized, sampler.BestKey(row.penalized));
  } else {
    sampler.Choose(row, raw, best);
  }
  sampler.Report(row, raw, best, answer);
}

template <int kThreads>
cudaError_t LaunchWith(const SampleLaunch& args, cudaStream_t stream) {
  return Launch(SampleKernel<kThreads>,
                {.grid = dim3(static_cast<unsigned>(args.rows)),
                 .threads = kThreads,
                 .shared_bytes = sizeof(SampleShared<kThreads>),
                 .stream = stream},
                args);
}

}  // namespace

cudaError_t LaunchSample(const SampleLaunch& args, cudaStream_t stream) {
  return args.vocabulary <= kWarpSize ? LaunchWith<kWarpSize>(args, stream)
                                      : LaunchWith<512>(args, stream);
}

}  // namespace baton::kernels::cuda
