#ifndef BATON_KERNELS_CUDA_WEIGHT_PANEL_H_
#define BATON_KERNELS_CUDA_WEIGHT_PANEL_H_

// How weights come to panels in shared memory (panel.h): BF16 by asynchronous copies, E4M3 through
// registers, where codes become BF16, exactly. For .cu files alone.

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/latent_tile.h"
#include "kernels/cuda/panel.h"

namespace baton::kernels::cuda {

// 64 rows of a weight matrix, those at and behind `count` as zeros.
struct WeightRows {
  int first;
  int count;
};

// By all threads of a block: Fetch begins to bring 64 columns of some rows, Store, which may come
// much later, brings E4M3 on into the panel. CopyAsyncWait and a barrier come before use.
template <bool kFp8, int kThreads>
class WeightPanelStager {
 public:
  // `columns` of a row, a multiple of 16; what lies behind them is zero.
  BATON_DEVICE WeightPanelStager(const GemmWeight& weight, int columns)
      : weight_(weight),
        columns_(columns),
        aligned_((reinterpret_cast<uintptr_t>(weight.data) |
                  static_cast<uintptr_t>(weight.stride * (kFp8 ? 1 : 2))) %
                     16 ==
                 0) {}

  // Columns [column, column + 64).
  BATON_DEVICE void Fetch(const WeightRows& rows, int column, uint16_t* to) {
    if constexpr (kFp8) {
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        const int at = i * kThreads + ThreadIndex();
        codes_[i] = Codes(rows, at / 4, column + at % 4 * 16);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        const int at = i * kThreads + ThreadIndex();
        CopyBf16(rows, at / 8, column + at % 8 * 8, to + PanelAt(at / 8, at % 8));
      }
      CopyAsyncCommit();
    }
  }

  BATON_DEVICE void Store(uint16_t* to) const {
    if constexpr (kFp8) {
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        const int at = i * kThreads + ThreadIndex();
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          Words4 values;
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            values.at[j] = CodesToBf16(codes_[i].at[2 * half + j / 2] >> (16 * (j % 2)));
          }
          *reinterpret_cast<Words4*>(to + PanelAt(at / 4, at % 4 * 2 + half)) = values;
        }
      }
    }
  }

 private:
  // 16 bytes each, of a thread.
  static constexpr int kPieces = kPanelElements * (kFp8 ? 1 : 2) / 16 / kThreads;

  BATON_DEVICE Words4 Codes(const WeightRows& rows, int row, int column) const {
    Words4 codes = {};
    if (row >= rows.count || column >= columns_) return codes;
    const uint8_t* const from = static_cast<const uint8_t*>(weight_.data) +
                                int64_t{rows.first + row} * weight_.stride + column;
    if (aligned_) return *reinterpret_cast<const Words4*>(from);
#pragma unroll
    for (int i = 0; i < 16; ++i) codes.at[i / 4] |= static_cast<uint32_t>(from[i]) << 8 * (i % 4);
    return codes;
  }

  BATON_DEVICE void CopyBf16(const WeightRows& rows, int row, int column, uint16_t* to) const {
    const bool present = row < rows.count && column < columns_;
    const uint16_t* const from =
        static_cast<const uint16_t*>(weight_.data) +
        (present ? int64_t{rows.first + row} * weight_.stride + column : 0);
    if (aligned_) return CopyAsync16(to, from, present ? 16 : 0);
#pragma unroll
    for (int i = 0; i < 8; ++i) to[i] = present ? from[i] : uint16_t{0};
  }

  const GemmWeight& weight_;
  const int columns_;
  const bool aligned_;
  Words4 codes_[kFp8 ? kPieces : 1];
};

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_WEIGHT_PANEL_H_
