#ifndef BATON_KERNELS_CUDA_GEMM_TILE_H_
#define BATON_KERNELS_CUDA_GEMM_TILE_H_

// What the products have in common: which tile a block computes, and what becomes of a sum. For .cu
// files alone.

#include "kernels/cuda/device.h"
#include "kernels/cuda/elements.h"
#include "kernels/cuda/gemm.h"

namespace baton::kernels::cuda {

// Rows of out that one block computes, all of one group.
struct GemmTile {
  int group = 0;
  int row = 0;   // the first
  int rows = 0;  // 0: nothing to do
};

// Tile `index` of the groups' tiles of kTileRows rows, counted group after group. Only the device
// knows the groups' sizes, so the grid has as many blocks as there can be tiles, and the last ones
// may find none. Each warp finds it for itself.
template <int kTileRows>
BATON_DEVICE GemmTile FindTile(const GemmLaunch& args, int index) {
  if (args.offsets == nullptr) {
    const int row = index * kTileRows;
    return {.group = 0, .row = row, .rows = Least(kTileRows, args.rows - row)};
  }
  int before = 0;  // tiles of the groups behind us
  for (int first = 0; first < args.groups; first += kWarpSize) {
    const int group = first + Lane();
    const int begin = group < args.groups ? args.offsets[group] : 0;
    const int end = group < args.groups ? args.offsets[group + 1] : 0;
    const int tiles = (end - begin + kTileRows - 1) / kTileRows;
    int sum = tiles;
#pragma unroll
    for (int delta = 1; delta < kWarpSize; delta *= 2) {
      const int lower = ShuffleUp(sum, delta);
      if (Lane() >= delta) sum += lower;
    }
    const uint32_t reached = Ballot(before + sum > index);
    if (reached != 0) {
      int lane = 0;
      while (((reached >> lane) & 1u) == 0) ++lane;
      const int tile = index - before - ShuffleFrom(sum - tiles, lane);
      const int row = ShuffleFrom(begin, lane) + tile * kTileRows;
      return {.group = first + lane,
              .row = row,
              .rows = Least(kTileRows, ShuffleFrom(end, lane) - row)};
    }
    before += ShuffleFrom(sum, kWarpSize - 1);
  }
  return {};
}

// The row of x that row `row` of the tile is computed from.
BATON_DEVICE int SourceRow(const GemmLaunch& args, const GemmTile& tile, int row) {
  return args.row_index == nullptr ? tile.row + row : args.row_index[tile.row + row];
}

BATON_DEVICE const GemmWeight& WeightOf(const GemmLaunch& args, int group, bool second) {
  if (args.table == nullptr) return second ? args.w2 : args.w;
  return args.table[(second ? args.groups : 0) + group];
}

// silu(gate) * up
BATON_DEVICE float SiluMul(float gate, float up) {
  constexpr float kLog2E = 1.44269504f;
  return gate / (1.0f + Exp2(-gate * kLog2E)) * up;
}

BATON_DEVICE void StoreSum(const GemmLaunch& args, int64_t row, int64_t column, float sum) {
  if (args.epilogue == GemmEpilogue::kAdd) sum += LoadElement(args.out, row, column);
  StoreElement(args.out, row, column, sum);
}

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_GEMM_TILE_H_
