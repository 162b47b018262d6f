#include "kernels/cuda/weight_maps.h"

#include <algorithm>
#include <numeric>

namespace baton::kernels::cuda {
namespace {

int64_t AddressOf(const GemmWeight& weight) { return reinterpret_cast<int64_t>(weight.data); }

int ElementBytes(const GemmLaunch& args) { return args.type == GemmType::kE4M3 ? 1 : 2; }

// Without a lattice: no data.
TensorShape ShapeOf(const GemmLaunch& args, const GemmWeight& single, const GemmLattice& groups,
                    int box_rows) {
  const int element = ElementBytes(args);
  TensorShape shape{.element_bytes = element,
                    .columns = args.k,
                    .rows = args.n,
                    .layers = args.batch,
                    .box_rows = box_rows};
  if (args.table != nullptr) {
    if (groups.data == nullptr || args.batch > 1) return {};
    shape.data = groups.data;
    shape.layers = groups.layers;
    shape.row_bytes = groups.row_bytes;
    shape.layer_bytes = groups.step_bytes;
  } else {
    shape.data = single.data;
    shape.row_bytes = single.stride * element;
    shape.layer_bytes = (args.batch > 1 ? args.w_step : args.n) * shape.row_bytes;
  }
  shape.data = static_cast<const char*>(shape.data) + args.w_begin * shape.row_bytes;
  return shape;
}

}  // namespace

GemmLattice FindLattice(std::span<GemmWeight> weights, int64_t rows, int element_bytes) {
  const auto [first, last] =
      std::minmax_element(weights.begin(), weights.end(),
                          [](const auto& a, const auto& b) { return AddressOf(a) < AddressOf(b); });
  const int64_t base = AddressOf(*first), span = AddressOf(*last) - base;
  int64_t step = 0;
  for (const GemmWeight& weight : weights) {
    if (weight.stride != weights[0].stride) return {};
    step = std::gcd(step, AddressOf(weight) - base);
  }
  const int64_t row_bytes = weights[0].stride * element_bytes;
  if (step == 0) step = rows * row_bytes;  // all are one matrix
  const GemmLattice lattice{.data = first->data,
                            .row_bytes = row_bytes,
                            .step_bytes = step,
                            .layers = step > 0 ? span / step + 1 : 0};
  const TensorShape shape{.data = lattice.data,
                          .element_bytes = element_bytes,
                          .columns = 1,
                          .rows = rows,
                          .layers = lattice.layers,
                          .row_bytes = row_bytes,
                          .layer_bytes = step,
                          .box_rows = 1};
  if (!FitsTensorMap(shape)) return {};
  for (GemmWeight& weight : weights) {
    weight.layer = static_cast<int32_t>((AddressOf(weight) - base) / step);
  }
  return lattice;
}

cudaError_t MapWeights(const GemmLaunch& args, int box_rows, WeightMaps* maps) {
  const bool pair = args.epilogue == GemmEpilogue::kSiluMul;
  const TensorShape w = ShapeOf(args, args.w, args.lattice, box_rows);
  const TensorShape w2 = ShapeOf(args, args.w2, args.lattice2, box_rows);
  maps->present = FitsTensorMap(w) && (!pair || FitsTensorMap(w2));
  if (!maps->present) return cudaSuccess;
  const cudaError_t made = MakeTensorMap(w, &maps->w);
  return made == cudaSuccess && pair ? MakeTensorMap(w2, &maps->w2) : made;
}

}  // namespace baton::kernels::cuda
