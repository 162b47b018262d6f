#include "kernels/cuda/device.h"
#include "kernels/cuda/elements.h"
#include "kernels/cuda/moe.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 4;
constexpr int kColumns = kThreads * kPerThread;  // of a block
constexpr int kMostChoices = 64;

// The choices with a row here, by ascending expert.
struct Choices {
  int32_t row[kMostChoices];
  float weight[kMostChoices];
};

BATON_DEVICE void SortChoices(const MoeCombineLaunch& args, int64_t token, Choices& choices) {
  const int choice = ThreadIndex();
  if (choice >= args.top_k) return;
  const int32_t* rows = args.rows + token * args.top_k;
  const int32_t* experts = args.experts + token * args.top_k;
  if (rows[choice] < 0) return;
  int rank = 0;
  for (int other = 0; other < args.top_k; ++other) {
    const bool first =
        experts[other] < experts[choice] || (experts[other] == experts[choice] && other < choice);
    rank += first && rows[other] >= 0 ? 1 : 0;
  }
  choices.row[rank] = rows[choice];
  choices.weight[rank] = args.weights[token * args.top_k + choice];
}

BATON_KERNEL(kThreads) MoeCombineKernel(const MoeCombineLaunch args) {
  auto& choices = SharedMemory<Choices>();
  const int token = BlockX();
  SortChoices(args, token, choices);
  int count = 0;
  for (int i = 0; i < args.top_k; ++i) {
    count += args.rows[int64_t{token} * args.top_k + i] >= 0 ? 1 : 0;
  }
  SyncBlock();
  float sums[kPerThread] = {};
  const int begin = BlockY() * kColumns + ThreadIndex();
  for (int i = 0; i < count; ++i) {
    const int row = choices.row[i];
    const float weight = choices.weight[i];
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      const int column = begin + j * kThreads;
      if (column < args.hidden) sums[j] = fmaf(weight, LoadElement(args.y, row, column), sums[j]);
    }
  }
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const int column = begin + j * kThreads;
    if (column >= args.hidden) continue;
    float sum = sums[j];
    if (args.shared.data != nullptr) sum += LoadElement(args.shared, token, column);
    if (args.accumulate) sum = LoadElement(args.out, token, column) + sum;
    StoreElement(args.out, token, column, sum);
  }
}

}  // namespace

cudaError_t LaunchMoeCombine(const MoeCombineLaunch& args, cudaStream_t stream) {
  return Launch(MoeCombineKernel,
                {.grid = dim3(static_cast<unsigned>(args.tokens),
                              static_cast<unsigned>((args.hidden + kColumns - 1) / kColumns)),
                 .threads = kThreads,
                 .shared_bytes = sizeof(Choices),
                 .stream = stream},
                args);
}

}  // namespace baton::kernels::cuda
