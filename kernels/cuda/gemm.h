#ifndef BATON_KERNELS_CUDA_GEMM_H_
#define BATON_KERNELS_CUDA_GEMM_H_

// Products with weight matrices, out = x w^T, of one matrix or of one for each group of rows.
// Linear, GroupedLinear, the heads' maps of MLA and the router's logits are all this.

#include <cstdint>

#include "kernels/cuda/launch_args.h"

namespace baton::kernels::cuda {

enum class GemmType : int32_t { kF32, kBf16, kE4M3 };

enum class GemmEpilogue : int32_t { kNone, kSiluMul, kAdd };  // as Epilogue in ops.h

struct GemmWeight {
  const void* data = nullptr;     // [n, k], rows `stride` apart
  const float* scales = nullptr;  // kE4M3: [blocks of n, blocks of k]
  int64_t stride = 0;             // elements
  int32_t first_row = 0;          // as Weight::first_row
  int32_t layer = 0;              // of the lattice of its table's half, where there is one
};

// Where the matrices of all groups lie, if that is at equal distances: layer i begins i times
// step_bytes behind `data`.
struct GemmLattice {
  const void* data = nullptr;  // null: elsewhere
  int64_t row_bytes = 0;       // from one row to the next
  int64_t step_bytes = 0;
  int64_t layers = 0;
};

struct GemmLaunch {
  Rows x;                           // [.., k]; with x_scales E4M3
  const float* x_scales = nullptr;  // [.., blocks of 128 k], rows x_scale_stride apart
  int64_t x_scale_stride = 0;
  const int32_t* row_index = nullptr;  // row of x for each row of out; null: the same row
  const int32_t* offsets = nullptr;    // [groups + 1]: rows of each group; null: one group of all
  const GemmWeight* table = nullptr;   // device memory, with offsets: w of each group, then, for
                                       // kSiluMul, w2 of each
  GemmWeight w, w2;                    // without a table
  GemmLattice lattice, lattice2;       // of the table's w and w2
  Rows out;                            // [rows, n]
  int groups = 1;
  int rows = 0;  // > 0: of out; those at and behind offsets[groups] are not written
  int n = 0;     // > 0
  int k = 0;
  int block_n = 1, block_k = 64;  // of kE4M3
  GemmType type = GemmType::kBf16;
  GemmEpilogue epilogue = GemmEpilogue::kNone;
  // The same product `batch` times; from one to the next x and out move by columns, w by rows.
  int batch = 1;
  int64_t x_step = 0, w_step = 0, out_step = 0;
  int64_t w_begin = 0;  // row of w where the first begins
  // The GPU is Hopper, and rows of every w begin at multiples of 16 bytes.
  bool hopper = false;
};

// Multiply-adds of F32 values, for any type of x and w. Not on tensor cores: where either side is
// F32, and rounding it to BF16 would lose what the caller asked for.
cudaError_t LaunchGemmF32(const GemmLaunch& args, cudaStream_t stream);

// BF16 x with BF16 or E4M3 weights on tensor cores.
cudaError_t LaunchGemmBf16(const GemmLaunch& args, cudaStream_t stream);

// E4M3 x with E4M3 weights on tensor cores; block scales are of 128 k.
cudaError_t LaunchGemmE4M3(const GemmLaunch& args, cudaStream_t stream);

// The last two by matrix instructions of warpgroups, on Hopper alone: x's rows begin at multiples
// of 16 bytes as well, and block scales are of 128 k.
cudaError_t LaunchGemmHopper(const GemmLaunch& args, cudaStream_t stream);
cudaError_t LaunchGemmE4M3Hopper(const GemmLaunch& args, cudaStream_t stream);
inline bool CanGemmHopper(const GemmLaunch& args) {
  const auto x = reinterpret_cast<uintptr_t>(args.x.data);
  const int element = args.x_scales != nullptr ? 1 : 2;
  return args.hopper && x % 16 == 0 && args.x.stride * element % 16 == 0 &&
         args.x_step * element % 16 == 0 && (args.type == GemmType::kBf16 || args.block_k == 128);
}

// The one that fits.
inline cudaError_t LaunchGemm(const GemmLaunch& args, cudaStream_t stream) {
  if (args.x_scales != nullptr) {
    return CanGemmHopper(args) ? LaunchGemmE4M3Hopper(args, stream) : LaunchGemmE4M3(args, stream);
  }
  if (!args.x.bf16 || args.type == GemmType::kF32) return LaunchGemmF32(args, stream);
  return CanGemmHopper(args) ? LaunchGemmHopper(args, stream) : LaunchGemmBf16(args, stream);
}

// Part of a table of weights, small enough to be a kernel's argument: unlike a copy from the host's
// memory it can be recorded in a graph.
struct GemmTableLaunch {
  static constexpr int kMost = 120;
  GemmWeight weights[kMost];
  GemmWeight* table = nullptr;  // where weights[0] goes
  int count = 0;                // > 0
};
cudaError_t LaunchGemmTable(const GemmTableLaunch& args, cudaStream_t stream);

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_GEMM_H_
