#include "tests/simt/kernels.h"

#include "kernels/cuda/device.h"

namespace baton::simt {
namespace {

using namespace kernels::cuda;  // what a kernel may use

constexpr int kThreads = 128;

struct SumShared {
  float partial[kThreads / kWarpSize];
};

// out[block] = sum of the block's n values.
BATON_KERNEL(kThreads) Sum(const TestArgs args) {
  auto& shared = SharedMemory<SumShared>();
  float sum = 0.0f;
  for (int i = ThreadIndex(); i < args.n; i += BlockThreads()) {
    sum += args.in[BlockX() * args.n + i];
  }
  sum = WarpSum(sum);
  if (Lane() == 0) shared.partial[Warp()] = sum;
  SyncBlock();
  if (ThreadIndex() == 0) {
    float total = 0.0f;
    for (const float part : shared.partial) total += part;
    args.out[BlockX()] = total;
  }
}

// out[i] = 2 in[i], as far as n.
BATON_KERNEL(kThreads) Scale(const TestArgs args) {
  const int i = BlockX() * BlockThreads() + ThreadIndex();
  if (i < args.n) args.out[i] = 2.0f * args.in[i];
}

struct TileShared {
  alignas(16) float values[2][kThreads * 4];
};

// Reverses n tiles of 512 values each, the next one on its way while one is turned.
BATON_KERNEL(kThreads) Tile(const TestArgs args) {
  auto& shared = SharedMemory<TileShared>();
  const int t = ThreadIndex();
  const auto fetch = [&](int tile) {
    if (tile < args.n) {
      CopyAsync16(&shared.values[tile % 2][t * 4], args.in + tile * kThreads * 4 + t * 4);
    }
    CopyAsyncCommit();
  };
  fetch(0);
  for (int tile = 0; tile < args.n; ++tile) {
    fetch(tile + 1);
    CopyAsyncWait<1>();
    SyncBlock();
    for (int i = 0; i < 4; ++i) {
      const int at = i * kThreads + t;
      args.out[tile * kThreads * 4 + at] = shared.values[tile % 2][kThreads * 4 - 1 - at];
    }
    SyncBlock();
  }
}

struct PipelineShared {
  alignas(16) float values[2][256];
  TransactionBarrier full[2], empty[2];
};

// One warp fetches, the other three add up: out[i] = sum over n rows of in[row][i], i < 256.
BATON_KERNEL(kThreads) Pipeline(const TestArgs args) {
  auto& shared = SharedMemory<PipelineShared>();
  constexpr int kConsumers = kThreads - kWarpSize;
  if (ThreadIndex() == 0) {
    for (int i = 0; i < 2; ++i) {
      InitTransaction(&shared.full[i], 1);
      InitTransaction(&shared.empty[i], kConsumers);
    }
  }
  SyncBlock();
  if (Warp() == kThreads / kWarpSize - 1) {
    if (Lane() != 0) return;
    for (int row = 0; row < args.n; ++row) {
      const int slot = row % 2;
      if (row >= 2) AwaitTransaction(&shared.empty[slot], (row / 2 - 1) % 2);
      ArriveExpecting(&shared.full[slot], sizeof(shared.values[slot]));
      CopyBulk(shared.values[slot], args.in + row * 256, sizeof(shared.values[slot]),
               &shared.full[slot]);
    }
    return;
  }
  float sums[3] = {};
  for (int row = 0; row < args.n; ++row) {
    const int slot = row % 2;
    AwaitTransaction(&shared.full[slot], row / 2 % 2);
    for (int i = 0; i < 3; ++i) {
      const int at = i * kConsumers + ThreadIndex();
      if (at < 256) sums[i] += shared.values[slot][at];
    }
    Arrive(&shared.empty[slot]);
  }
  for (int i = 0; i < 3; ++i) {
    const int at = i * kConsumers + ThreadIndex();
    if (at < 256) args.out[at] = sums[i];
  }
}

struct MatrixShared {
  alignas(16) uint16_t a[16][24];  // rows apart by 48 bytes
  alignas(16) uint16_t b[16][8];
};

// out = a b by matrix instructions. Mode 0: BF16, a [16, 16] and b [16, 8]; 1: E4M3, a [16, 32] and
// b [8, 32] (columns).
BATON_KERNEL(kWarpSize) Matrices(const TestArgs args) {
  auto& shared = SharedMemory<MatrixShared>();
  const int lane = Lane(), g = lane / 4, q = lane % 4;
  float d[4] = {};
  if (args.mode == 0) {
    for (int i = lane; i < 16 * 16; i += kWarpSize) shared.a[i / 16][i % 16] = args.a[i];
    for (int i = lane; i < 16 * 8; i += kWarpSize) shared.b[i / 8][i % 8] = args.b[i];
    SyncWarp();
    uint32_t a[4], b[4];
    LoadMatrix4(a, &shared.a[lane % 16][lane / 16 * 8]);
    LoadMatrix4Transposed(b, &shared.b[lane % 16][0]);
    const uint32_t pair[2] = {b[0], b[1]};
    MmaBf16(d, a, pair);
  } else {
    const auto word = [](const uint8_t* at) {
      return at[0] | static_cast<uint32_t>(at[1]) << 8 | static_cast<uint32_t>(at[2]) << 16 |
             static_cast<uint32_t>(at[3]) << 24;
    };
    const uint32_t a[4] = {word(args.a8 + g * 32 + 4 * q), word(args.a8 + (g + 8) * 32 + 4 * q),
                           word(args.a8 + g * 32 + 16 + 4 * q),
                           word(args.a8 + (g + 8) * 32 + 16 + 4 * q)};
    const uint32_t b[2] = {word(args.b8 + g * 32 + 4 * q), word(args.b8 + g * 32 + 16 + 4 * q)};
    MmaE4M3(d, a, b);
  }
  args.out[g * 8 + 2 * q] = d[0];
  args.out[g * 8 + 2 * q + 1] = d[1];
  args.out[(g + 8) * 8 + 2 * q] = d[2];
  args.out[(g + 8) * 8 + 2 * q + 1] = d[3];
}

BATON_KERNEL(kThreads) Count(const TestArgs args) {
  const uint32_t even = Ballot(ThreadIndex() % 2 == 0);
  if (Lane() == 0) {
    AtomicAdd(args.counter, 32);
    AtomicMax(args.counter + 1, BlockX());
    AtomicOr(reinterpret_cast<uint32_t*>(args.counter + 2), even);
  }
}

// --- one fault each

struct PlantedShared {
  alignas(16) float values[kThreads];
  TransactionBarrier barrier;
};

// What goes wrong between threads, or between a thread and a copy.
template <Planted kPlanted>
BATON_DEVICE void DisturbOrder(PlantedShared& shared, const TestArgs& args, float* out) {
  const int t = ThreadIndex();
  if constexpr (kPlanted == Planted::kSharedRace) {
    shared.values[t] = 0.0f;
    SyncBlock();
    shared.values[t] = 1.0f;
    if (args.mode == 1) SyncBlock();
    out[t] = shared.values[(t + 32) % kThreads];
  } else if constexpr (kPlanted == Planted::kSharedOverwrite) {
    shared.values[t] = 1.0f;
    SyncBlock();
    out[t] = shared.values[kThreads - 1 - t];
    if (args.mode == 1) SyncBlock();
    shared.values[t] = 2.0f;
  } else if constexpr (kPlanted == Planted::kWarpRace) {
    shared.values[t] = 0.0f;
    SyncBlock();
    shared.values[t] = 1.0f;
    if (args.mode == 1) {
      SyncWarp();
    } else {
      (void)WarpMax(1.0f);  // meets, but orders nothing
    }
    out[t] = shared.values[t ^ 1];
  } else if constexpr (kPlanted == Planted::kGlobalRace) {
    (args.mode == 1 ? out : args.out)[t] = 1.0f;
  } else if constexpr (kPlanted == Planted::kCopyNotAwaited) {
    if (t < 32) {
      CopyAsync16(&shared.values[t * 4], args.in + t * 4);
      CopyAsyncCommit();
      if (args.mode == 1) CopyAsyncWait<0>();
      out[t] = shared.values[t * 4];
    }
  } else if constexpr (kPlanted == Planted::kCopyNotShared) {
    if (t < 32) CopyAsync16(&shared.values[t * 4], args.in + t * 4);
    CopyAsyncCommit();
    if (args.mode == 0) SyncBlock();
    CopyAsyncWait<0>();
    if (args.mode == 1) SyncBlock();
    out[t] = shared.values[t];
  } else if constexpr (kPlanted == Planted::kBulkNotAwaited) {
    if (t == 0) {
      InitTransaction(&shared.barrier, 1);
      ArriveExpecting(&shared.barrier, sizeof(shared.values));
      CopyBulk(shared.values, args.in, sizeof(shared.values), &shared.barrier);
    }
    SyncBlock();
    if (args.mode == 1) AwaitTransaction(&shared.barrier, 0);
    out[t] = shared.values[t];
  } else if constexpr (kPlanted == Planted::kTransactionForever) {
    if (t == 0) {
      InitTransaction(&shared.barrier, 1);
      ArriveExpecting(&shared.barrier, sizeof(shared.values) + 16);
      CopyBulk(shared.values, args.in, sizeof(shared.values), &shared.barrier);
    }
    SyncBlock();
    AwaitTransaction(&shared.barrier, 0);
  }
}

template <Planted kPlanted>
BATON_KERNEL(kThreads)
Faulty(const TestArgs args) {
  auto& shared = SharedMemory<PlantedShared>();
  const int t = ThreadIndex();
  float* const out = args.out + BlockX() * kThreads;
  if constexpr (kPlanted == Planted::kReadBehindGlobal) {
    out[t] = args.in[t + 1];
  } else if constexpr (kPlanted == Planted::kWriteBehindShared) {
    shared.values[t + args.n] = 1.0f;
  } else if constexpr (kPlanted == Planted::kUninitializedGlobal) {
    out[t] = args.in[t];
  } else if constexpr (kPlanted == Planted::kUninitializedShared) {
    if (t != 5) shared.values[t] = 1.0f;
    SyncBlock();
    out[t] = shared.values[t];
  } else if constexpr (kPlanted == Planted::kHostPointer) {
    out[t] = args.in[0];
  } else if constexpr (kPlanted == Planted::kMisaligned) {
    out[t] = *reinterpret_cast<const float*>(reinterpret_cast<const char*>(args.in) + 2);
  } else if constexpr (kPlanted == Planted::kDivergentBarrier) {
    if (t < 64) {
      SyncBlock();
      out[t] = 1.0f;
    } else {
      out[t] = 2.0f;
      SyncBlock();
    }
  } else if constexpr (kPlanted == Planted::kMissingThread) {
    if (t == 77) return;
    SyncBlock();
  } else if constexpr (kPlanted == Planted::kDivergentShuffle) {
    float v = 1.0f;
    if (Lane() < 7) {
      v = ShuffleXor(v, 1);
    } else {
      v = WarpMax(v);
    }
    out[t] = v;
  } else if constexpr (kPlanted == Planted::kTrap) {
    if (t == 3) Trap();
  } else if constexpr (kPlanted == Planted::kTooMuchShared) {
    shared.values[t] = 1.0f;
  } else {
    DisturbOrder<kPlanted>(shared, args, out);
  }
}

template <Planted kPlanted>
cudaError_t LaunchFaulty(const TestArgs& args, cudaStream_t stream) {
  return Launch(Faulty<kPlanted>,
                {.grid = dim3(2),
                 .threads = kPlanted == Planted::kBadShape ? 100 : kThreads,
                 .shared_bytes = kPlanted == Planted::kTooMuchShared ? 64 : sizeof(PlantedShared),
                 .stream = stream},
                args);
}

template <int kFirst = 0>
cudaError_t LaunchNumbered(int planted, const TestArgs& args, cudaStream_t stream) {
  if constexpr (kFirst > static_cast<int>(Planted::kBadShape)) {
    return cudaErrorInvalidValue;
  } else {
    if (planted == kFirst) return LaunchFaulty<static_cast<Planted>(kFirst)>(args, stream);
    return LaunchNumbered<kFirst + 1>(planted, args, stream);
  }
}

}  // namespace

cudaError_t LaunchSum(const TestArgs& args, int blocks, cudaStream_t stream) {
  return Launch(Sum,
                {.grid = dim3(static_cast<unsigned>(blocks)),
                 .threads = kThreads,
                 .shared_bytes = sizeof(SumShared),
                 .stream = stream},
                args);
}

cudaError_t LaunchScale(const TestArgs& args, int blocks, cudaStream_t stream) {
  return Launch(
      Scale, {.grid = dim3(static_cast<unsigned>(blocks)), .threads = kThreads, .stream = stream},
      args);
}

cudaError_t LaunchTile(const TestArgs& args, cudaStream_t stream) {
  return Launch(Tile, {.threads = kThreads, .shared_bytes = sizeof(TileShared), .stream = stream},
                args);
}

cudaError_t LaunchPipeline(const TestArgs& args, cudaStream_t stream) {
  return Launch(Pipeline,
                {.threads = kThreads, .shared_bytes = sizeof(PipelineShared), .stream = stream},
                args);
}

cudaError_t LaunchMatrices(const TestArgs& args, cudaStream_t stream) {
  return Launch(Matrices,
                {.threads = kWarpSize, .shared_bytes = sizeof(MatrixShared), .stream = stream},
                args);
}

cudaError_t LaunchCount(const TestArgs& args, int blocks, cudaStream_t stream) {
  return Launch(
      Count, {.grid = dim3(static_cast<unsigned>(blocks)), .threads = kThreads, .stream = stream},
      args);
}

cudaError_t LaunchPlanted(Planted planted, const TestArgs& args, cudaStream_t stream) {
  return LaunchNumbered(static_cast<int>(planted), args, stream);
}

}  // namespace baton::simt
