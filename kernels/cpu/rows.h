#ifndef BATON_KERNELS_CPU_ROWS_H_
#define BATON_KERNELS_CPU_ROWS_H_

// Row-wise building blocks shared by several ops, at a given ISA level. Each is a pure function of
// the one row.

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/tensor.h"

namespace baton::kernels::cpu {

// n elements of row `row` of an F32, BF16 or F8E4M3 tensor, from element `column` of the row on, as
// F32.
void WidenRow(IsaLevel isa, const TensorView& from, int64_t row, int64_t column, int64_t n,
              float* to);
// The reverse, to F32 or BF16, rounding to nearest even.
void NarrowRow(IsaLevel isa, const float* from, int64_t n, const TensorView& to, int64_t row,
               int64_t column);
// to = x / sqrt(mean(x^2) + eps) * weight; `to` may be x.
void NormRow(IsaLevel isa, const float* x, int64_t n, const float* weight, float eps, float* to);
// to += from
void AddRow(IsaLevel isa, const float* from, int64_t n, float* to);
// In place: sigmoid of each, or softmax over all.
void SigmoidRow(IsaLevel isa, float* x, int64_t n);
void SoftmaxRow(IsaLevel isa, float* x, int64_t n);
// Sum of exp(x - best).
float SumExpRow(IsaLevel isa, const float* x, int64_t n, float best);

}  // namespace baton::kernels::cpu

#endif  // BATON_KERNELS_CPU_ROWS_H_
