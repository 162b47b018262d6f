#ifndef BATON_KERNELS_PAGE_ENTRY_H_
#define BATON_KERNELS_PAGE_ENTRY_H_

// One token's entry in a latent page: where its parts lie, and the scalar way to write and read it
// (KvFormat in ops.h). For host backends.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/numeric.h"
#include "kernels/ops.h"

namespace baton::kernels {

inline constexpr int kQuantGroup = 128;

inline uint8_t* EntryAt(const KvPages& pages, int64_t page, int64_t offset) {
  return pages.data.row<uint8_t>(page) +
         offset * KvEntryBytes(pages.format, pages.kv_lora, pages.rope);
}

inline uint8_t* EntryAtSlot(const KvPages& pages, int64_t slot) {
  return EntryAt(pages, slot / pages.page_tokens, slot % pages.page_tokens);
}

// Entry of a position of a sequence whose page table is `table`.
inline const uint8_t* EntryAtPosition(const KvPages& pages, const int32_t* table,
                                      int64_t position) {
  return EntryAt(pages, table[position / pages.page_tokens], position % pages.page_tokens);
}

inline int64_t ScaleOffset(const KvPages& pages) { return pages.kv_lora; }
inline int64_t RopeOffset(const KvPages& pages) {
  switch (pages.format) {
    case KvFormat::kBF16:
      return 2 * int64_t{pages.kv_lora};
    case KvFormat::kFP8:
      return pages.kv_lora + 4 * ((int64_t{pages.kv_lora} + kQuantGroup - 1) / kQuantGroup);
    case KvFormat::kF32:
      return 4 * int64_t{pages.kv_lora};
  }
  return 0;
}

// Quantizes one group of at most 128 values (QuantizeFp8 of ops.h); returns its scale.
inline float QuantizeGroup(const float* values, int64_t count, uint8_t* codes) {
  float largest = 0.0f;
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) {
    largest = std::max(largest, std::fabs(values[i]));
    finite = finite && std::isfinite(values[i]);
  }
  const float scale = finite ? F8GroupScale(largest) : std::numeric_limits<float>::quiet_NaN();
  for (int64_t i = 0; i < count; ++i) codes[i] = F32ToF8E4M3(values[i] / scale);
  return scale;
}

inline void WriteNarrow(uint8_t* to, const float* values, int64_t count, bool f32) {
  for (int64_t i = 0; i < count; ++i) {
    if (f32) {
      std::memcpy(to + 4 * i, &values[i], 4);
    } else {
      const uint16_t bits = F32ToBf16(values[i]);
      std::memcpy(to + 2 * i, &bits, 2);
    }
  }
}

inline void ReadNarrow(const uint8_t* from, int64_t count, bool f32, float* values) {
  for (int64_t i = 0; i < count; ++i) {
    if (f32) {
      std::memcpy(&values[i], from + 4 * i, 4);
    } else {
      uint16_t bits;
      std::memcpy(&bits, from + 2 * i, 2);
      values[i] = Bf16ToF32(bits);
    }
  }
}

// `latent` [kv_lora] and `rotary` [rope] to the entry's format.
inline void WriteEntry(const KvPages& pages, const float* latent, const float* rotary,
                       uint8_t* entry) {
  const bool f32 = pages.format == KvFormat::kF32;
  if (pages.format == KvFormat::kFP8) {
    for (int64_t begin = 0; begin < pages.kv_lora; begin += kQuantGroup) {
      const int64_t count = std::min<int64_t>(kQuantGroup, pages.kv_lora - begin);
      const float scale = QuantizeGroup(latent + begin, count, entry + begin);
      std::memcpy(entry + ScaleOffset(pages) + 4 * (begin / kQuantGroup), &scale, 4);
    }
  } else {
    WriteNarrow(entry, latent, pages.kv_lora, f32);
  }
  WriteNarrow(entry + RopeOffset(pages), rotary, pages.rope, f32);
}

// The reverse; an FP8 latent is code * scale, rounded once to F32.
inline void ReadEntry(const KvPages& pages, const uint8_t* entry, float* latent, float* rotary) {
  const bool f32 = pages.format == KvFormat::kF32;
  if (pages.format == KvFormat::kFP8) {
    for (int64_t i = 0; i < pages.kv_lora; ++i) {
      float scale;
      std::memcpy(&scale, entry + ScaleOffset(pages) + 4 * (i / kQuantGroup), 4);
      latent[i] = F8E4M3ToF32(entry[i]) * scale;
    }
  } else {
    ReadNarrow(entry, pages.kv_lora, f32, latent);
  }
  ReadNarrow(entry + RopeOffset(pages), pages.rope, f32, rotary);
}

}  // namespace baton::kernels

#endif  // BATON_KERNELS_PAGE_ENTRY_H_
