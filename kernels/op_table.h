#ifndef BATON_KERNELS_OP_TABLE_H_
#define BATON_KERNELS_OP_TABLE_H_

// What a backend is: one function for each op of ops.h, called with arguments that ops.cc has
// checked, and never with an empty batch. Every entry of every table is set.

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/ops.h"

namespace baton::kernels {

template <typename Args>
using OpFunction = absl::Status (*)(Device&, const Args&);

struct OpTable {
  OpFunction<EmbedArgs> embed;
  OpFunction<RmsNormArgs> rms_norm;
  OpFunction<LinearArgs> linear;
  OpFunction<QuantizeFp8Args> quantize_fp8;
  OpFunction<RopeAndPageArgs> rope_and_page;
  OpFunction<MlaPrefillArgs> mla_prefill;
  OpFunction<MlaAbsorbQArgs> mla_absorb_q;
  OpFunction<MlaDecodeArgs> mla_decode;
  OpFunction<MlaExpandVArgs> mla_expand_v;
  OpFunction<PagesPackArgs> pages_pack;
  OpFunction<PagesUnpackArgs> pages_unpack;
  OpFunction<MoeGateArgs> moe_gate;
  OpFunction<MoePermuteArgs> moe_permute;
  OpFunction<GroupedLinearArgs> grouped_linear;
  OpFunction<MoeCombineArgs> moe_combine;
  OpFunction<LogitsMaskArgs> logits_mask;
  OpFunction<SampleArgs> sample;

  // The device's memory.
  absl::StatusOr<DeviceBuffer> (*allocate)(Device&, size_t bytes);
  absl::Status (*copy_to_device)(Device&, void* device, const void* host, size_t bytes);
  absl::Status (*copy_to_host)(Device&, void* host, const void* device, size_t bytes);
  absl::Status (*synchronize)(Device&);
};

const OpTable& ReferenceOps();
const OpTable& CpuOps();
const OpTable& CudaOps();  // defined only in builds with the CUDA backend

}  // namespace baton::kernels

#endif  // BATON_KERNELS_OP_TABLE_H_
