#ifndef BATON_KERNELS_CUDA_MLA_PREFILL_H_
#define BATON_KERNELS_CUDA_MLA_PREFILL_H_

// Attention in MHA form on tensor cores (MlaPrefill of kernels/ops.h), in two launches for each
// group of heads: one expands the latents of all contexts into keys and values, one attends to
// them.
//
// Between the two lies scratch memory of panels: 64 keys x 64 columns of BF16, 8 KiB, 16 bytes
// swizzled as shared memory wants them. A key block is 64 keys at absolute positions of one
// sequence; those of all sequences that have rows are numbered through.

#include <cstdint>

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/launch_args.h"
#include "kernels/cuda/paged.h"

namespace baton::kernels::cuda {

inline constexpr int kPanelKeys = 64;  // where a row's online softmax takes its steps
inline constexpr int kPanelColumns = 64;
inline constexpr int kPanelElements = kPanelKeys * kPanelColumns;
inline constexpr int kPrefillRows = 128;  // query rows of a block, all of one sequence

constexpr int PanelsFor(int columns) { return (columns + kPanelColumns - 1) / kPanelColumns; }

struct MlaPrefillLaunch {
  Rows q;                           // BF16 [rows * heads, nope + rope]
  Rows out;                         // BF16 [rows * heads, v]
  GemmWeight kv_b;                  // [heads * (nope + v), kv_lora]
  GemmType type = GemmType::kBf16;  // of kv_b: BF16 or E4M3
  int block_n = 128;
  int block_k = 128;  // a multiple of 64
  Pages pages;
  Batch batch;
  int rows = 0;  // > 0
  int heads = 0;
  int nope = 0;
  int v = 0;
  int first_head = 0;            // of this launch
  int group = 0;                 // heads of this launch
  int key_blocks = 0;            // of all sequences, at most
  float scale_log2 = 0.0f;       // softmax's scale times log2(e)
  uint16_t* expanded = nullptr;  // scratch [key_blocks, group, ExpandedPanels, kPanelElements]
  uint16_t* rotary = nullptr;    // scratch [key_blocks, kPanelElements], for all groups
};

// Of a key block and head: the keys' nope columns, then what BF16 rounds away of them, as BF16
// again; then of each 64 value columns the same two.
constexpr int ExpandedPanels(int nope, int v) { return 2 * (PanelsFor(nope) + PanelsFor(v)); }

// Whether the kernels take these types and sizes; of the launch's group and scratch nothing.
bool CanMlaPrefillTensor(const MlaPrefillLaunch& args);

// A block for (key block, head of the group). The group that begins with head 0 also fills
// `rotary`.
cudaError_t LaunchMlaExpand(const MlaPrefillLaunch& args, cudaStream_t stream);

// A block for (128 rows of a sequence, head of the group).
cudaError_t LaunchMlaPrefill(const MlaPrefillLaunch& args, cudaStream_t stream);

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_MLA_PREFILL_H_
