#include "kernels/cuda/rope_and_page.h"

#include "kernels/cuda/block_sum.h"
#include "kernels/cuda/elements.h"
#include "kernels/cuda/fp8_group.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

// (a, b) -> (a cos - b sin, a sin + b cos); each product is rounded.
BATON_DEVICE void Rotate(float& a, float& b, float cos, float sin) {
  const float rotated = a * cos - b * sin;
  b = a * sin + b * cos;
  a = rotated;
}

BATON_DEVICE void RotateQueries(const RopeAndPageLaunch& args, int row, const float* cos,
                                const float* sin) {
  const int rope = args.pages.rope, pairs = rope / 2;
  for (int i = ThreadIndex(); i < args.heads * pairs; i += kThreads) {
    const int64_t item = static_cast<int64_t>(row) * args.heads + i / pairs;
    const int column = args.head - rope + 2 * (i % pairs);
    float a = LoadElement(args.q, item, column), b = LoadElement(args.q, item, column + 1);
    Rotate(a, b, cos[i % pairs], sin[i % pairs]);
    StoreElement(args.q, item, column, a);
    StoreElement(args.q, item, column + 1, b);
  }
}

BATON_DEVICE void StoreNarrow(void* to, int i, float value, bool f32) {
  if (f32) {
    static_cast<float*>(to)[i] = value;
  } else {
    static_cast<uint16_t*>(to)[i] = FloatToBf16(value);
  }
}

BATON_DEVICE void PageRow(const RopeAndPageLaunch& args, int row, int64_t slot, const float* cos,
                          const float* sin) {
  const Pages& pages = args.pages;
  uint8_t* entry = pages.data + slot / pages.page_tokens * pages.page_bytes +
                   slot % pages.page_tokens * pages.entry_bytes;
  const bool f32 = pages.format == PageFormat::kF32;
  float squares = 0.0f;
  for (int i = ThreadIndex(); i < pages.kv_lora; i += kThreads) {
    const float value = LoadElement(args.kv_a, row, i);
    squares = fmaf(value, value, squares);
  }
  const float mean = SharedMemory<BlockSum<kThreads>>().Sum(squares) / pages.kv_lora;
  const float scale = 1.0f / sqrtf(mean + args.epsilon);
  const auto latent = [&](int i) {
    return i < pages.kv_lora ? LoadElement(args.kv_a, row, i) * scale * LoadElement(args.norm, 0, i)
                             : 0.0f;
  };
  if (pages.format == PageFormat::kFp8) {
    for (int begin = Warp() * kLatentGroup; begin < pages.kv_lora; begin += kWarps * kLatentGroup) {
      Fp8Group group;
#pragma unroll
      for (int i = 0; i < Fp8Group::kPerLane; ++i) {
        group.values[i] = latent(begin + i * kWarpSize + Lane());
      }
      group.Scale();
#pragma unroll
      for (int i = 0; i < Fp8Group::kPerLane; ++i) {
        const int at = begin + i * kWarpSize + Lane();
        if (at < pages.kv_lora) entry[at] = group.Code(i);
      }
      if (Lane() == 0) {
        reinterpret_cast<float*>(entry + pages.kv_lora)[begin / kLatentGroup] = group.StoredScale();
      }
    }
  } else {
    for (int i = ThreadIndex(); i < pages.kv_lora; i += kThreads) {
      StoreNarrow(entry, i, latent(i), f32);
    }
  }
  for (int i = ThreadIndex(); i < pages.rope / 2; i += kThreads) {
    float a = LoadElement(args.kv_a, row, pages.kv_lora + 2 * i);
    float b = LoadElement(args.kv_a, row, pages.kv_lora + 2 * i + 1);
    Rotate(a, b, cos[i], sin[i]);
    StoreNarrow(entry + pages.rope_offset, 2 * i, a, f32);
    StoreNarrow(entry + pages.rope_offset, 2 * i + 1, b, f32);
  }
}

BATON_KERNEL(kThreads) RopeAndPageKernel(const RopeAndPageLaunch args) {
  const int row = BlockX();
  const int64_t angles = static_cast<int64_t>(args.positions[row]) * (args.pages.rope / 2);
  if (args.q.data != nullptr) RotateQueries(args, row, args.cos + angles, args.sin + angles);
  if (args.kv_a.data == nullptr || args.slots[row] < 0) return;  // the whole block
  PageRow(args, row, args.slots[row], args.cos + angles, args.sin + angles);
}

}  // namespace

cudaError_t LaunchRopeAndPage(const RopeAndPageLaunch& args, cudaStream_t stream) {
  return Launch(RopeAndPageKernel,
                {.grid = dim3(static_cast<unsigned>(args.rows)),
                 .threads = kThreads,
                 .shared_bytes = sizeof(BlockSum<kThreads>),
                 .stream = stream},
                args);
}

}  // namespace baton::kernels::cuda
