#ifndef BATON_KERNELS_REFERENCE_REFERENCE_OPS_H_
#define BATON_KERNELS_REFERENCE_REFERENCE_OPS_H_

// The oracle: every op as its definition reads, one element at a time, in double. Single-threaded.

#include "kernels/ops.h"

namespace baton::kernels::reference {

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

}  // namespace baton::kernels::reference

#endif  // BATON_KERNELS_REFERENCE_REFERENCE_OPS_H_
