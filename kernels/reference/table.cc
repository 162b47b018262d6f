#include "kernels/host_ops.h"
#include "kernels/op_table.h"
#include "kernels/reference/reference_ops.h"

namespace baton::kernels {

const OpTable& ReferenceOps() {
  static constexpr OpTable kTable = {
      .embed = reference::Embed,
      .rms_norm = reference::RmsNorm,
      .linear = reference::Linear,
      .quantize_fp8 = reference::QuantizeFp8,
      .rope_and_page = reference::RopeAndPage,
      .mla_prefill = reference::MlaPrefill,
      .mla_absorb_q = reference::MlaAbsorbQ,
      .mla_decode = reference::MlaDecode,
      .mla_expand_v = reference::MlaExpandV,
      .pages_pack = HostPagesPack,
      .pages_unpack = HostPagesUnpack,
      .moe_gate = reference::MoeGate,
      .moe_permute = HostMoePermute,
      .grouped_linear = reference::GroupedLinear,
      .moe_combine = reference::MoeCombine,
      .logits_mask = HostLogitsMask,
      .sample = reference::Sample,
      .allocate = HostAllocate,
      .copy_to_device = HostCopyToDevice,
      .copy_to_host = HostCopyToHost,
      .synchronize = HostSynchronize,
  };
  return kTable;
}

}  // namespace baton::kernels
