// The host's side of Linear and GroupedLinear.

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "base/status_macros.h"
#include "kernels/cuda/cublaslt_gemm.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_views.h"
#include "kernels/cuda/views.h"
#include "kernels/cuda/weight_maps.h"

namespace baton::kernels::cuda {
namespace {

GemmEpilogue EpilogueOf(Epilogue epilogue) {
  if (epilogue == Epilogue::kSiluMul) return GemmEpilogue::kSiluMul;
  return epilogue == Epilogue::kAdd ? GemmEpilogue::kAdd : GemmEpilogue::kNone;
}

struct GroupTable {
  const GemmWeight* weights = nullptr;
  GemmLattice lattice, lattice2;  // of w and w2
};

// The weights of all groups in the GPU's memory, in the stream's order.
absl::StatusOr<GroupTable> PlaceTable(CudaState& state, const GroupedLinearArgs& args) {
  std::vector<GemmWeight> weights;
  weights.reserve(args.w.size() + args.w2.size());
  for (const Weight& weight : args.w) weights.push_back(GemmWeightOf(weight));
  for (const Weight& weight : args.w2) weights.push_back(GemmWeightOf(weight));
  const auto lattice_of = [&](size_t begin, size_t count) {
    if (count == 0 || !state.warpgroups()) return GemmLattice{};  // others have no use for it
    return FindLattice(std::span(weights).subspan(begin, count), args.out.dim(1),
                       static_cast<int>(DTypeBytes(args.w[0].w.dtype)));
  };
  GroupTable placed{.lattice = lattice_of(0, args.w.size()),
                    .lattice2 = lattice_of(args.w.size(), args.w2.size())};
  BATON_ASSIGN_OR_RETURN(GemmWeight* const table,
                         state.Scratch<GemmWeight>(static_cast<int64_t>(weights.size())));
  for (size_t begin = 0; begin < weights.size(); begin += GemmTableLaunch::kMost) {
    const size_t count = std::min<size_t>(GemmTableLaunch::kMost, weights.size() - begin);
    GemmTableLaunch part{.table = table + begin, .count = static_cast<int>(count)};
    std::copy_n(weights.begin() + static_cast<int64_t>(begin), count, part.weights);
    BATON_RETURN_IF_ERROR(
        state.Finish(LaunchGemmTable(part, state.stream()), "table of grouped_linear"));
  }
  placed.weights = table;
  return placed;
}

}  // namespace

absl::Status Linear(Device& device, const LinearArgs& args) {
  CudaState& state = CudaState::Begin(device);
  if (state.cublaslt() != nullptr && CublasLtGemm::Takes(state, args)) {
    return state.cublaslt()->Run(state, args);
  }
  const bool codes = !args.x_scales.absent();
  return state.Finish(LaunchGemm({.x = RowsOf(args.x),
                                  .x_scales = codes ? args.x_scales.as<const float>() : nullptr,
                                  .x_scale_stride = codes ? args.x_scales.strides[0] : 0,
                                  .w = GemmWeightOf(args.w),
                                  .w2 = GemmWeightOf(args.w2),
                                  .out = RowsOf(args.out),
                                  .rows = static_cast<int>(args.out.dim(0)),
                                  .n = static_cast<int>(args.out.dim(1)),
                                  .k = static_cast<int>(args.x.dim(1)),
                                  .block_n = args.w.block_n,
                                  .block_k = args.w.block_k,
                                  .type = GemmTypeOf(args.w.w.dtype),
                                  .epilogue = EpilogueOf(args.epilogue),
                                  .hopper = state.warpgroups() && HasAlignedRows(args.w) &&
                                            HasAlignedRows(args.w2)},
                                 state.stream()),
                      "linear");
}

absl::Status GroupedLinear(Device& device, const GroupedLinearArgs& args) {
  CudaState& state = CudaState::Begin(device);
  BATON_ASSIGN_OR_RETURN(const GroupTable table, PlaceTable(state, args));
  const Weight& first = args.w[0];
  const bool codes = !args.x_scales.absent();
  return state.Finish(
      LaunchGemm(
          {.x = RowsOf(args.x),
           .x_scales = codes ? args.x_scales.as<const float>() : nullptr,
           .x_scale_stride = codes ? args.x_scales.strides[0] : 0,
           .row_index = args.row_index.absent() ? nullptr : args.row_index.as<const int32_t>(),
           .offsets = args.offsets.as<const int32_t>(),
           .table = table.weights,
           .lattice = table.lattice,
           .lattice2 = table.lattice2,
           .out = RowsOf(args.out),
           .groups = static_cast<int>(args.w.size()),
           .rows = static_cast<int>(args.out.dim(0)),
           .n = static_cast<int>(args.out.dim(1)),
           .k = static_cast<int>(args.x.dim(1)),
           .block_n = first.block_n,
           .block_k = first.block_k,
           .type = GemmTypeOf(first.w.dtype),
           .epilogue = EpilogueOf(args.epilogue),
           .hopper = state.warpgroups() &&
                     std::all_of(args.w.begin(), args.w.end(), HasAlignedRows) &&
                     std::all_of(args.w2.begin(), args.w2.end(), HasAlignedRows)},
          state.stream()),
      "grouped_linear");
}

}  // namespace baton::kernels::cuda
