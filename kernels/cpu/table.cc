#include "kernels/cpu/cpu_ops.h"
#include "kernels/host_ops.h"
#include "kernels/op_table.h"

namespace baton::kernels {

const OpTable& CpuOps() {
  static constexpr OpTable kTable = {
      .embed = cpu::Embed,
      .rms_norm = cpu::RmsNorm,
      .linear = cpu::Linear,
      .quantize_fp8 = cpu::QuantizeFp8,
      .rope_and_page = cpu::RopeAndPage,
      .mla_prefill = cpu::MlaPrefill,
      .mla_absorb_q = cpu::MlaAbsorbQ,
      .mla_decode = cpu::MlaDecode,
      .mla_expand_v = cpu::MlaExpandV,
      .pages_pack = HostPagesPack,
      .pages_unpack = HostPagesUnpack,
      .moe_gate = cpu::MoeGate,
      .moe_permute = HostMoePermute,
      .grouped_linear = cpu::GroupedLinear,
      .moe_combine = cpu::MoeCombine,
      .logits_mask = HostLogitsMask,
      .sample = cpu::Sample,
      .allocate = HostAllocate,
      .copy_to_device = HostCopyToDevice,
      .copy_to_host = HostCopyToHost,
      .synchronize = HostSynchronize,
  };
  return kTable;
}

}  // namespace baton::kernels
