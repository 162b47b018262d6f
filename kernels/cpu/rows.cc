#include "kernels/cpu/rows.h"

#include "kernels/cpu/simd_base.h"

#define BATON_ISA_FILE "kernels/cpu/rows_isa.h"
#include "kernels/cpu/foreach_isa.h"

namespace baton::kernels::cpu {

void WidenRow(IsaLevel isa, const TensorView& from, int64_t row, int64_t column, int64_t n,
              float* to) {
  BATON_ISA_CALL(isa, WidenRow(from, row, column, n, to));
}
void NarrowRow(IsaLevel isa, const float* from, int64_t n, const TensorView& to, int64_t row,
               int64_t column) {
  BATON_ISA_CALL(isa, NarrowRow(from, n, to, row, column));
}
void NormRow(IsaLevel isa, const float* x, int64_t n, const float* weight, float eps, float* to) {
  BATON_ISA_CALL(isa, NormRow(x, n, weight, eps, to));
}
void AddRow(IsaLevel isa, const float* from, int64_t n, float* to) {
  BATON_ISA_CALL(isa, AddRow(from, n, to));
}
void SigmoidRow(IsaLevel isa, float* x, int64_t n) { BATON_ISA_CALL(isa, SigmoidRow(x, n)); }
void SoftmaxRow(IsaLevel isa, float* x, int64_t n) { BATON_ISA_CALL(isa, SoftmaxRow(x, n)); }
float SumExpRow(IsaLevel isa, const float* x, int64_t n, float best) {
  BATON_ISA_CALL(isa, SumExpRow(x, n, best));
}

}  // namespace baton::kernels::cpu
