// What the warp's operations do, over all of its lanes.

#include <bit>

#include "tests/simt/block.h"

namespace baton::simt {
namespace {

float Bf16(uint32_t pair, int half) {
  return std::bit_cast<float>(half == 0 ? pair << 16 : pair & 0xFFFF0000u);
}

// E4M3 (fn): see kernels/numeric.h, which this must not share a fault with.
double E4M3(uint32_t four, int byte) {
  const uint32_t code = (four >> (8 * byte)) & 0xFFu;
  const int exponent = static_cast<int>((code >> 3) & 15u);
  const int mantissa = static_cast<int>(code & 7u);
  if ((code & 0x7Fu) == 0x7Fu) return std::bit_cast<float>(0x7FC00000u);
  const double magnitude =
      exponent == 0 ? mantissa * 0x1p-9 : (8 + mantissa) * 0x1p-10 * (1 << exponent);
  return (code & 0x80u) != 0 ? -magnitude : magnitude;
}

template <typename Lane>
void LoadMatrices(Lane* lanes, bool transposed) {
  for (int i = 0; i < 32; ++i) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint16_t pair[2];
      for (int j = 0; j < 2; ++j) {
        const int row = transposed ? 2 * (i % 4) + j : i / 4;
        const int column = transposed ? i / 4 : 2 * (i % 4) + j;
        pair[j] = static_cast<const uint16_t*>(lanes[matrix * 8 + row].row)[column];
      }
      lanes[i].words[matrix] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
    }
  }
}

template <typename Lane>
void MultiplyBf16(Lane* lanes) {
  float a[16][16], b[16][8];
  for (int i = 0; i < 32; ++i) {
    const int g = i / 4, q = i % 4;
    for (int j = 0; j < 2; ++j) {
      a[g][2 * q + j] = Bf16(lanes[i].a[0], j);
      a[g + 8][2 * q + j] = Bf16(lanes[i].a[1], j);
      a[g][2 * q + 8 + j] = Bf16(lanes[i].a[2], j);
      a[g + 8][2 * q + 8 + j] = Bf16(lanes[i].a[3], j);
      b[2 * q + j][g] = Bf16(lanes[i].b[0], j);
      b[2 * q + 8 + j][g] = Bf16(lanes[i].b[1], j);
    }
  }
  for (int i = 0; i < 32; ++i) {
    for (int j = 0; j < 4; ++j) {
      const int row = i / 4 + (j >= 2 ? 8 : 0), column = 2 * (i % 4) + j % 2;
      double sum = lanes[i].d[j];
      for (int k = 0; k < 16; ++k) sum += static_cast<double>(a[row][k]) * b[k][column];
      lanes[i].d[j] = static_cast<float>(sum);
    }
  }
}

template <typename Lane>
void MultiplyE4M3(Lane* lanes) {
  double a[16][32], b[32][8];
  for (int i = 0; i < 32; ++i) {
    const int g = i / 4, q = i % 4;
    for (int j = 0; j < 4; ++j) {
      a[g][4 * q + j] = E4M3(lanes[i].a[0], j);
      a[g + 8][4 * q + j] = E4M3(lanes[i].a[1], j);
      a[g][4 * q + 16 + j] = E4M3(lanes[i].a[2], j);
      a[g + 8][4 * q + 16 + j] = E4M3(lanes[i].a[3], j);
      b[4 * q + j][g] = E4M3(lanes[i].b[0], j);
      b[4 * q + 16 + j][g] = E4M3(lanes[i].b[1], j);
    }
  }
  for (int i = 0; i < 32; ++i) {
    for (int j = 0; j < 4; ++j) {
      const int row = i / 4 + (j >= 2 ? 8 : 0), column = 2 * (i % 4) + j % 2;
      double sum = lanes[i].d[j];
      for (int k = 0; k < 32; ++k) sum += a[row][k] * b[k][column];
      lanes[i].d[j] = static_cast<float>(sum);
    }
  }
}

}  // namespace

void BlockRunner::Perform(int op, LaneCall* lanes) {
  switch (op) {
    case static_cast<int>(WarpOp::kShuffle):
      for (int i = 0; i < 32; ++i) lanes[i].out = lanes[lanes[i].source].in;
      return;
    case static_cast<int>(WarpOp::kBallot): {
      uint64_t mask = 0;
      for (int i = 0; i < 32; ++i) mask |= lanes[i].in << i;
      for (int i = 0; i < 32; ++i) lanes[i].out = mask;
      return;
    }
    case static_cast<int>(WarpOp::kLoadMatrix):
      return LoadMatrices(lanes, /*transposed=*/false);
    case static_cast<int>(WarpOp::kLoadMatrixTransposed):
      return LoadMatrices(lanes, /*transposed=*/true);
    case static_cast<int>(WarpOp::kMmaBf16):
      return MultiplyBf16(lanes);
    case static_cast<int>(WarpOp::kMmaE4M3):
      return MultiplyE4M3(lanes);
    default:
      return;  // a barrier
  }
}

}  // namespace baton::simt
