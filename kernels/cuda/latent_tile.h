#ifndef BATON_KERNELS_CUDA_LATENT_TILE_H_
#define BATON_KERNELS_CUDA_LATENT_TILE_H_

// Blocks of 64 keys in shared memory as operands of matrix instructions. For .cu files alone.
//
// A row of a tile is one key: kv_lora latents, `rope` rotary values, zeros up to a multiple of 32.
// BF16 values are what the page holds. FP8 latents are their codes, which BF16 holds exactly; their
// scales stay apart in F32 and multiply sums over a group.

#include "kernels/cuda/device.h"
#include "kernels/cuda/paged_rows.h"

namespace baton::kernels::cuda {

inline constexpr int kTileKeys = 64;
inline constexpr int kTileLora = 512;                         // at most
inline constexpr int kTileRope = 64;                          // at most
inline constexpr int kTilePitch = kTileLora + kTileRope + 8;  // rows begin in other banks
inline constexpr int kTileGroups = kTileLora / kLatentGroup;

// BF16 values, 2 and 8 at a time.
struct [[gnu::may_alias]] Word {
  uint32_t bits;
};
struct [[gnu::may_alias]] alignas(16) Words4 {
  uint32_t at[4];
};

struct alignas(16) LatentTile {
  uint16_t keys[kTileKeys][kTilePitch];
};
struct LatentScales {
  float of[kTileKeys][kTileGroups];
};

// What a tile's kernels need of the pages; the rest goes the plain way.
inline bool FitsLatentTile(const Pages& pages) {
  return pages.format != PageFormat::kF32 && pages.kv_lora <= kTileLora && pages.rope <= kTileRope;
}
// Whether entries can be copied 16 bytes at a time.
BATON_DEVICE bool AlignedEntries(const Pages& pages) {
  return pages.entry_bytes % 16 == 0 && pages.page_bytes % 16 == 0 &&
         reinterpret_cast<uintptr_t>(pages.data) % 16 == 0;
}

BATON_DEVICE int TileDepth(const Pages& pages) {
  return (pages.kv_lora + pages.rope + 31) / 32 * 32;
}

// What no copy writes: zeros behind the rotary values. Once for each tile, by all threads.
template <int kThreads>
BATON_DEVICE void ClearTileEnds(const Pages& pages, LatentTile& tile) {
  const int begin = pages.kv_lora + pages.rope, count = TileDepth(pages) - begin;
  for (int i = ThreadIndex(); i < kTileKeys * count; i += kThreads) {
    tile.keys[i / count][begin + i % count] = 0;
  }
}

// Keys [first, first + 64) of a sequence, those at and behind `end` as zeros, by all threads:
// asynchronous copies where entries are aligned, so CopyAsyncWait and a barrier come before use.
template <int kThreads>
BATON_DEVICE void StageBf16(const Pages& pages, const Batch& batch, bool aligned, int sequence,
                            int first, int end, LatentTile& tile) {
  constexpr int kSharers = kThreads / kTileKeys;  // threads that copy one key
  const int key = ThreadIndex() / kSharers, part = ThreadIndex() % kSharers;
  const bool visible = first + key < end;
  const uint8_t* entry = visible ? EntryAt(pages, batch, sequence, first + key) : pages.data;
  if (aligned) {
    for (int i = part; i < pages.entry_bytes / 16; i += kSharers) {
      CopyAsync16(&tile.keys[key][8 * i], entry + 16 * i, visible ? 16 : 0);
    }
    return;
  }
  const uint32_t* words = reinterpret_cast<const uint32_t*>(entry);
  for (int i = part; i < pages.entry_bytes / 4; i += kSharers) {
    *reinterpret_cast<Word*>(&tile.keys[key][2 * i]) = {visible ? words[i] : 0};
  }
}

BATON_DEVICE uint32_t CodesToBf16(uint32_t codes) {
  return PackBf16(E4M3ToFloat(static_cast<uint8_t>(codes)),
                  E4M3ToFloat(static_cast<uint8_t>(codes >> 8)));
}

// The same of FP8 entries, through registers.
template <int kThreads>
BATON_DEVICE void StageFp8(const Pages& pages, const Batch& batch, bool aligned, int sequence,
                           int first, int end, LatentTile& tile, LatentScales& scales) {
  constexpr int kSharers = kThreads / kTileKeys;
  const int key = ThreadIndex() / kSharers, part = ThreadIndex() % kSharers;
  const bool visible = first + key < end;
  const uint8_t* entry = visible ? EntryAt(pages, batch, sequence, first + key) : pages.data;
  for (int i = part; i < pages.kv_lora / 16; i += kSharers) {
    Words4 codes = {};
    if (visible && aligned) {
      codes = *reinterpret_cast<const Words4*>(entry + 16 * i);
    } else if (visible) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        codes.at[j] = *reinterpret_cast<const uint32_t*>(entry + 16 * i + 4 * j);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Words4 values;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        values.at[j] = CodesToBf16(codes.at[2 * half + j / 2] >> (16 * (j % 2)));
      }
      *reinterpret_cast<Words4*>(&tile.keys[key][16 * i + 8 * half]) = values;
    }
  }
  const uint32_t* rotary = reinterpret_cast<const uint32_t*>(entry + pages.rope_offset);
  for (int i = part; i < pages.rope / 2; i += kSharers) {
    *reinterpret_cast<Word*>(&tile.keys[key][pages.kv_lora + 2 * i]) = {visible ? rotary[i] : 0};
  }
  const float* group_scales = reinterpret_cast<const float*>(entry + pages.kv_lora);
  for (int i = part; i < kTileGroups; i += kSharers) {
    scales.of[key][i] = visible && i * kLatentGroup < pages.kv_lora ? group_scales[i] : 0.0f;
  }
}

// A value as the sum of two BF16, 16 bits of it.
struct Bf16Pair {
  uint16_t high;
  uint16_t low;
};
BATON_DEVICE Bf16Pair SplitBf16(float value) {
  const uint16_t high = FloatToBf16(value);
  return {high, FloatToBf16(value - Bf16ToFloat(high))};
}
// Two values as words of BF16, `low` of what `high` has rounded away.
BATON_DEVICE void SplitBf16x2(float a, float b, uint32_t& high, uint32_t& low) {
  const Bf16Pair first = SplitBf16(a), second = SplitBf16(b);
  high = first.high | static_cast<uint32_t>(second.high) << 16;
  low = first.low | static_cast<uint32_t>(second.low) << 16;
}

// Operand a of 16 rows and 16 columns from `row0` on, rows `pitch` apart.
BATON_DEVICE void LoadRows16(uint32_t (&a)[4], const uint16_t* row0, int pitch) {
  const int lane = Lane();
  LoadMatrix4(a, row0 + (lane / 8 % 2 * 8 + lane % 8) * pitch + lane / 16 * 8);
}

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_LATENT_TILE_H_
