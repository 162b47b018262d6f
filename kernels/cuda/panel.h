#ifndef BATON_KERNELS_CUDA_PANEL_H_
#define BATON_KERNELS_CUDA_PANEL_H_

// Panels of 64 columns of BF16 in shared memory as operands of matrix instructions, and where the
// pieces of a ragged batch lie. For .cu files alone.
//
// A panel's row is 128 bytes, all banks once, so eight rows of one ldmatrix would meet in the same
// banks: row r keeps its 16 bytes number c at place c ^ (r % 8).

#include "kernels/cuda/device.h"
#include "kernels/cuda/mla_prefill.h"
#include "kernels/cuda/paged.h"

namespace baton::kernels::cuda {

// Element where 16 bytes number `chunk` of a row begin.
BATON_DEVICE int PanelAt(int row, int chunk) {
  return row * kPanelColumns + (chunk ^ (row % 8)) * 8;
}

// Operand a: rows [row, row + 16), columns [16 step, 16 step + 16).
BATON_DEVICE void LoadPanelA(uint32_t (&a)[4], const uint16_t* panel, int row, int step) {
  const int lane = Lane();
  LoadMatrix4(a, panel + PanelAt(row + lane / 8 % 2 * 8 + lane % 8, 2 * step + lane / 16));
}

// Operand b of two instructions: the panel's rows [row, row + 16) are the columns of b, its columns
// [16 step, 16 step + 16) the rows.
BATON_DEVICE void LoadPanelB(uint32_t (&b)[4], const uint16_t* panel, int row, int step) {
  const int lane = Lane();
  LoadMatrix4(b, panel + PanelAt(row + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
}

// The same with the panel's rows [16 step, 16 step + 16) as rows of b and its columns [column,
// column + 16) as columns.
BATON_DEVICE void LoadPanelBTransposed(uint32_t (&b)[4], const uint16_t* panel, int column,
                                       int step) {
  const int lane = Lane();
  LoadMatrix4Transposed(
      b, panel + PanelAt(16 * step + lane / 8 % 2 * 8 + lane % 8, column / 8 + lane / 16));
}

// A piece of a batch: number `index` of its sequence, whose key blocks begin with number
// `first_block`. sequence < 0: there is no such piece.
struct BatchPiece {
  int sequence;
  int index;
  int first_block;
};

enum class PieceKind { kKeyBlock, kQueryTile };

// Piece `number` of the batch, counted sequence after sequence. Each warp finds it for itself.
template <PieceKind kKind>
BATON_DEVICE BatchPiece FindPiece(const Batch& batch, int number) {
  int pieces_before = 0, blocks_before = 0;
  for (int first = 0; first < batch.sequences; first += kWarpSize) {
    const int sequence = first + Lane();
    int rows = 0, blocks = 0;
    if (sequence < batch.sequences) {
      rows = batch.query_start[sequence + 1] - batch.query_start[sequence];
      if (rows > 0) blocks = (batch.context_len[sequence] + kPanelKeys - 1) / kPanelKeys;
    }
    const int pieces =
        kKind == PieceKind::kKeyBlock ? blocks : (rows + kPrefillRows - 1) / kPrefillRows;
    int piece_sum = pieces, block_sum = blocks;
#pragma unroll
    for (int delta = 1; delta < kWarpSize; delta *= 2) {
      const int lower_pieces = ShuffleUp(piece_sum, delta);
      const int lower_blocks = ShuffleUp(block_sum, delta);
      if (Lane() >= delta) {
        piece_sum += lower_pieces;
        block_sum += lower_blocks;
      }
    }
    const uint32_t reached = Ballot(pieces_before + piece_sum > number);
    if (reached != 0) {
      int lane = 0;
      while (((reached >> lane) & 1u) == 0) ++lane;
      return {first + lane, number - pieces_before - ShuffleFrom(piece_sum - pieces, lane),
              blocks_before + ShuffleFrom(block_sum - blocks, lane)};
    }
    pieces_before += ShuffleFrom(piece_sum, kWarpSize - 1);
    blocks_before += ShuffleFrom(block_sum, kWarpSize - 1);
  }
  return {-1, 0, 0};
}

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_PANEL_H_
