#include "kernels/cpu/attention.h"

#include "kernels/cpu/simd_base.h"
#include "kernels/page_entry.h"

#define BATON_ISA_FILE "kernels/cpu/attention_isa.h"
#include "kernels/cpu/foreach_isa.h"

namespace baton::kernels::cpu {

void ClearState(const AttentionState& state, int64_t rows) {
  std::fill(state.best, state.best + rows, -std::numeric_limits<float>::infinity());
  std::fill(state.sum, state.sum + rows, 0.0f);
  std::fill(state.acc, state.acc + rows * state.width, 0.0f);
}

void AttendPrefill(IsaLevel isa, const PrefillBlock& block) {
  BATON_ISA_CALL(isa, AttendPrefill(block));
}
void AttendDecode(IsaLevel isa, const DecodeBlock& block) {
  BATON_ISA_CALL(isa, AttendDecode(block));
}
void FoldState(IsaLevel isa, const AttentionState& part, int64_t rows, const AttentionState& into) {
  BATON_ISA_CALL(isa, FoldState(part, rows, into));
}
void FinishState(IsaLevel isa, const AttentionState& state, int64_t rows) {
  BATON_ISA_CALL(isa, FinishState(state, rows));
}
void WidenEntry(IsaLevel isa, const KvPages& pages, const uint8_t* entry, float* latent,
                float* rotary) {
  BATON_ISA_CALL(isa, WidenEntry(pages, entry, latent, rotary));
}

}  // namespace baton::kernels::cpu
