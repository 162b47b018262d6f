#ifndef BATON_KERNELS_CPU_GEMM_H_
#define BATON_KERNELS_CPU_GEMM_H_

// Inner products of activation rows with weight rows, for every op that has them: dense and grouped
// layers, the MoE gate, the per-head matrices of attention.
//
// The order of one sum (row r, weight row n) is fixed by K, the dtypes and the ISA level alone:
// lane-wise partial sums along K in the weight's stored order; each block_k-deep part of an FP8
// weight is summed from zero and enters the total as fma(part, scale, total), where scale is the
// weight's, or with E4M3 rows the product of both; one fixed horizontal sum at the end. Register
// tiles, widened copies of weights, threads and batches only choose which sums run side by side.
//
// Two engines: BF16 or E4M3 activations with BF16 or FP8 weights on AVX512_BF16 multiply pairs by
// vdpbf16ps, which treats subnormal BF16 values as zero (none of E4M3's is one); everything else
// widens to F32 and uses fused multiply-add. Products of E4M3 codes are exact in both.

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/ops.h"

namespace baton::kernels::cpu {

// Columns that are widened and multiplied together.
inline constexpr int kColumnTile = 16;
// K is padded to a multiple of this in packed rows.
inline constexpr int kDepthStep = 64;

inline int64_t PaddedDepth(int64_t k) { return (k + kDepthStep - 1) / kDepthStep * kDepthStep; }

// Activation rows as an engine reads them: BF16 or F32, each row followed by zeros up to
// PaddedDepth(K).
struct GemmRows {
  const void* data = nullptr;
  int64_t stride = 0;              // elements
  bool bf16 = false;               // which engine
  const float* scales = nullptr;   // of E4M3 rows: one for each 128 k of a row
  int64_t scale_stride = 0;        // elements
  const int32_t* index = nullptr;  // nullable: row r is row index[r] of data
};

// One register-tiled product on one thread: out[r * row_stride + (n - n_begin) * column_stride] for
// r in [0, rows), n in [n_begin, n_end). x.index is already applied to row 0 being r = row_begin.
// `widened` holds kColumnTile * PaddedDepth(K) floats of this thread.
struct GemmCall {
  GemmRows x;
  int64_t row_begin = 0, row_end = 0;
  const Weight* w = nullptr;
  int64_t n_begin = 0, n_end = 0;
  float* widened = nullptr;
  float* out = nullptr;
  int64_t row_stride = 0, column_stride = 1;
};
void Multiply(IsaLevel isa, const GemmCall& call);

// Whether products of these dtypes use the BF16 engine.
bool UsesBf16(IsaLevel isa, DType activations, DType weights);

// x as rows for products with weights of `weights` dtype: x itself when it already has the form,
// else a packed copy in the device's scratch. `scales` are those of E4M3 rows, else absent.
GemmRows PrepareRows(Device& device, const TensorView& x, DType weights,
                     const TensorView& scales = {});

// One matrix and the rows that meet it: out[r][n - n_begin] for output rows [row_begin, row_end).
struct GemmJob {
  GemmRows x;
  int64_t row_begin = 0, row_end = 0;
  const Weight* w = nullptr;
  const Weight* w2 = nullptr;  // kSiluMul
  int64_t n_begin = 0, n_end = 0;
  TensorView out;  // F32 or BF16 rows, [>= row_end, n_end - n_begin]
};
// All jobs on the device's threads. All weights have the same K.
void RunGemm(Device& device, absl::Span<const GemmJob> jobs, Epilogue epilogue);

}  // namespace baton::kernels::cpu

#endif  // BATON_KERNELS_CPU_GEMM_H_
