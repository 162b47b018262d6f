#ifndef BATON_KERNELS_OP_LIST_H_
#define BATON_KERNELS_OP_LIST_H_

// Every op of ops.h, once, for whatever has one entry for each op: OpTable, the backends'
// declarations and tables, and the tests that must leave none out.
//
//   X(Name, entry) stands for `absl::Status Name(Device&, const NameArgs&)` and OpTable::entry.

#define BATON_KERNEL_OPS(X)          \
  X(Embed, embed)                    \
  X(RmsNorm, rms_norm)               \
  X(Linear, linear)                  \
  X(QuantizeFp8, quantize_fp8)       \
  X(RopeAndPage, rope_and_page)      \
  X(MlaPrefill, mla_prefill)         \
  X(MlaAbsorbQ, mla_absorb_q)        \
  X(MlaDecode, mla_decode)           \
  X(MlaExpandV, mla_expand_v)        \
  X(PagesPack, pages_pack)           \
  X(PagesUnpack, pages_unpack)       \
  X(MoeGate, moe_gate)               \
  X(MoePermute, moe_permute)         \
  X(GroupedLinear, grouped_linear)   \
  X(MoeCombine, moe_combine)         \
  X(MoeCount, moe_count)             \
  X(CopyRows, copy_rows)             \
  X(DispatchPlan, dispatch_plan)     \
  X(DispatchPack, dispatch_pack)     \
  X(DispatchUnpack, dispatch_unpack) \
  X(ReturnPlan, return_plan)         \
  X(LogitsMask, logits_mask)         \
  X(Sample, sample)

// Declares a backend's function for an op, inside its namespace.
#define BATON_DECLARE_OP(Name, entry) absl::Status Name(Device& device, const Name##Args& args);

#endif  // BATON_KERNELS_OP_LIST_H_
