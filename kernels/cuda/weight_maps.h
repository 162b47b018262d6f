#ifndef BATON_KERNELS_CUDA_WEIGHT_MAPS_H_
#define BATON_KERNELS_CUDA_WEIGHT_MAPS_H_

// The weights of a product as tensors, which Hopper's copy engine takes boxes from: one for w and
// one for w2, with a layer for each group. A tensor's layers lie at equal distances, as experts do
// that have places of one size; weights that lie otherwise are copied by threads. Which way it is
// follows from the addresses and changes no bit.

#include <cstdint>
#include <span>

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/tensor_map.h"

namespace baton::kernels::cuda {

// Finds the lattice in which matrices of `rows` rows lie, and writes to each which layer it is.
// None (no data) where they do not have one that a tensor map can describe. One matrix may be that
// of several groups.
GemmLattice FindLattice(std::span<GemmWeight> weights, int64_t rows, int element_bytes);

struct WeightMaps {
  TensorMap w, w2;
  bool present = false;  // both; w2 only for kSiluMul
};

// For boxes of `box_rows` rows. Column k of output n of a batch's product b is column k of row n of
// layer b, or, of a group, of its GemmWeight::layer. Errors are MakeTensorMap's; weights that no
// map can describe are none.
cudaError_t MapWeights(const GemmLaunch& args, int box_rows, WeightMaps* maps);

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_WEIGHT_MAPS_H_
