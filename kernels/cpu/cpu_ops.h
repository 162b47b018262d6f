#ifndef BATON_KERNELS_CPU_CPU_OPS_H_
#define BATON_KERNELS_CPU_CPU_OPS_H_

// The cpu backend's ops: SIMD at the device's ISA level, on the device's threads. Row-invariant
// (ops.h); how each one gets there stands in its file.

#include "kernels/ops.h"

namespace baton::kernels::cpu {

absl::Status Embed(Device& device, const EmbedArgs& args);
absl::Status RmsNorm(Device& device, const RmsNormArgs& args);
absl::Status Linear(Device& device, const LinearArgs& args);
absl::Status GroupedLinear(Device& device, const GroupedLinearArgs& args);
absl::Status QuantizeFp8(Device& device, const QuantizeFp8Args& args);
absl::Status RopeAndPage(Device& device, const RopeAndPageArgs& args);
absl::Status MlaPrefill(Device& device, const MlaPrefillArgs& args);
absl::Status MlaAbsorbQ(Device& device, const MlaAbsorbQArgs& args);
absl::Status MlaDecode(Device& device, const MlaDecodeArgs& args);
absl::Status MlaExpandV(Device& device, const MlaExpandVArgs& args);
absl::Status MoeGate(Device& device, const MoeGateArgs& args);
absl::Status MoeCombine(Device& device, const MoeCombineArgs& args);
absl::Status Sample(Device& device, const SampleArgs& args);

}  // namespace baton::kernels::cpu

#endif  // BATON_KERNELS_CPU_CPU_OPS_H_
