#include "tests/simt/group_kernels.h"

#include "kernels/cuda/device.h"

namespace baton::simt {
namespace {

using namespace kernels::cuda;  // what a kernel may use

constexpr int kThreads = 128;
constexpr int kTileBytes = 64 * 128;

struct Tiles {
  alignas(1024) unsigned char a[kTileBytes];
  alignas(1024) unsigned char b[2][kTileBytes];
  TransactionBarrier full;
};

struct [[gnu::may_alias]] Half {
  uint16_t bits;
};

BATON_DEVICE void StoreTile(unsigned char* tile, const uint16_t* from) {
  for (int i = ThreadIndex(); i < 64 * 64; i += kThreads) {
    *reinterpret_cast<Half*>(&tile[SwizzledByte(i / 64, i % 64 * 2)]) = {from[i]};
  }
}

BATON_DEVICE void StoreCodes(unsigned char* tile, const uint8_t* from, int rows) {
  for (int i = ThreadIndex(); i < rows * 128; i += kThreads) {
    tile[SwizzledByte(i / 128, i % 128)] = from[i];
  }
}

BATON_DEVICE void Initialize(Tiles& tiles) {
  if (ThreadIndex() == 0) InitTransaction(&tiles.full, 1);
  SyncBlock();
}

// Boxes from (64 i, row, 1) to b[i]; by one thread.
BATON_DEVICE void Fetch(Tiles& tiles, const TensorMap& map, int row, int boxes) {
  ArriveExpecting(&tiles.full, boxes * kTileBytes);
  for (int i = 0; i < boxes; ++i) CopyTensor(tiles.b[i], &map, 64 * i, row, 1, &tiles.full);
}

template <int kN>
BATON_DEVICE void Store(const float (&d)[kN / 2], float* out) {
  const int row = Warp() * 16 + Lane() / 4;
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) {
    out[(row + i % 4 / 2 * 8) * kN + i / 4 * 8 + Lane() % 4 * 2 + i % 2] = d[i];
  }
}

BATON_KERNEL(kThreads) RowsTimesRows(BATON_GRID_CONSTANT const GroupArgs args) {
  auto& tiles = SharedMemory<Tiles>();
  Initialize(tiles);
  if (ThreadIndex() == 0) {
    ArriveExpecting(&tiles.full, kTileBytes);
    CopyTensor(tiles.b[0], &args.b, 64, 10, 1, &tiles.full);
  }
  StoreTile(tiles.a, args.a);
  FenceAsyncProxy();
  SyncBlock();
  AwaitTransaction(&tiles.full, 0);
  float d[32];
  GroupMmaFence(d);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    GroupMmaBf16<64>(d, RowsAt(tiles.a, 32 * k), RowsAt(tiles.b[0], 32 * k), k > 0);
    if (k == 1) GroupMmaCommit();
  }
  GroupMmaCommit();
  GroupMmaWait<1>();
  GroupMmaWait<0>(d);
  Store<64>(d, args.out);
}

BATON_KERNEL(kThreads) RegistersTimesColumns(BATON_GRID_CONSTANT const GroupArgs args) {
  auto& tiles = SharedMemory<Tiles>();
  Initialize(tiles);
  if (ThreadIndex() == 0) Fetch(tiles, args.b, 10, 2);
  float d[64];
  uint32_t a[4][4];
#pragma unroll
  for (int i = 0; i < 64; ++i) d[i] = 1.0f;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const int row = Warp() * 16 + Lane() / 4 + i % 2 * 8;
    const uint16_t* const pair = args.a + row * 64 + i / 4 * 16 + Lane() % 4 * 2 + i % 4 / 2 * 8;
    a[i / 4][i % 4] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
  }
  AwaitTransaction(&tiles.full, 0);
  GroupMmaFence(d, a);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    GroupMmaBf16<128>(d, a[k], ColumnsAt(tiles.b[0] + k * 2048, kTileBytes), true);
  }
  GroupMmaCommit();
  GroupMmaWait<0>(d, a);
  Store<128>(d, args.out);
}

BATON_KERNEL(kThreads) Codes(BATON_GRID_CONSTANT const GroupArgs args) {
  auto& tiles = SharedMemory<Tiles>();
  const bool by_box = args.mode == 1;
  Initialize(tiles);
  if (by_box && ThreadIndex() == 0) {
    PrefetchTensorMap(&args.codes);
    ArriveExpecting(&tiles.full, kTileBytes);
    CopyTensor(tiles.a, &args.codes, 16, 20, 2, &tiles.full);
  }
  if (!by_box) StoreCodes(tiles.a, args.a8, 64);
  StoreCodes(tiles.b[0], args.b8, 16);
  FenceAsyncProxy();
  SyncBlock();
  if (by_box) AwaitTransaction(&tiles.full, 0);
  float d[8];
  GroupMmaFence(d);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    GroupMmaE4M3<16>(d, RowsAt(tiles.a, 32 * k), RowsAt(tiles.b[0], 32 * k), k > 0);
  }
  GroupMmaCommit();
  GroupMmaWait<0>(d);
  Store<16>(d, args.out);
}

// --- one fault each

// What goes wrong with a box itself.
template <GroupFault kFault>
BATON_DEVICE void FetchWrongly(Tiles& tiles, const GroupArgs& args) {
  constexpr int kExpected = kFault == GroupFault::kBoxBytesMissing      ? 2 * kTileBytes
                            : kFault == GroupFault::kBoxBytesUnexpected ? kTileBytes / 2
                                                                        : kTileBytes;
  const auto* const no_map = reinterpret_cast<const TensorMap*>(&args);
  if (kFault == GroupFault::kPrefetchOfNoMap) PrefetchTensorMap(no_map);
  ArriveExpecting(&tiles.full, kExpected);
  unsigned char* to = tiles.b[0];
  if (kFault == GroupFault::kBoxMisaligned) to += 512;
  if (kFault == GroupFault::kBoxBehindShared) to = tiles.a + sizeof(Tiles);
  const TensorMap* map = kFault == GroupFault::kBoxOfNoMap ? no_map : &args.b;
  if (kFault == GroupFault::kBoxOfOtherMemory) map = &args.codes;
  CopyTensor(to, map, 0, 0, kFault == GroupFault::kBoxOfOtherMemory ? 3 : 1, &tiles.full);
}

constexpr bool IsOfBox(GroupFault fault) { return fault >= GroupFault::kBoxMisaligned; }

// What goes wrong with operands: how a and b come to shared memory.
template <GroupFault kFault>
BATON_DEVICE void Bring(Tiles& tiles, const GroupArgs& args) {
  const bool wrong = args.mode == 0;
  Initialize(tiles);
  if constexpr (kFault == GroupFault::kNoProxyFenceBeforeCopy) {
    StoreTile(tiles.b[0], args.a);
    if (!wrong) FenceAsyncProxy();
    SyncBlock();
  }
  if (ThreadIndex() == 0) {
    if (kFault == GroupFault::kNotSwizzled && wrong) {
      ArriveExpecting(&tiles.full, kTileBytes);
      CopyBulk(tiles.b[0], args.a, kTileBytes, &tiles.full);
    } else if (IsOfBox(kFault) && wrong) {
      FetchWrongly<kFault>(tiles, args);
    } else {
      Fetch(tiles, args.b, kFault == GroupFault::kUninitializedRow ? 36 : 0, 1);
    }
  }
  StoreTile(tiles.a, args.a);
  if (kFault != GroupFault::kNoProxyFence || !wrong) FenceAsyncProxy();
  SyncBlock();
  if (kFault != GroupFault::kBoxNotAwaited || !wrong) AwaitTransaction(&tiles.full, 0);
  if (kFault == GroupFault::kUninitializedRow && !wrong) {
    tiles.b[0][SwizzledByte(63, ThreadIndex())] = 0;
    FenceAsyncProxy();
    SyncBlock();
  }
}

template <GroupFault kFault>
BATON_KERNEL(kThreads)
GroupFaulty(BATON_GRID_CONSTANT const GroupArgs args) {
  auto& tiles = SharedMemory<Tiles>();
  const bool wrong = args.mode == 0;
  Bring<kFault>(tiles, args);
  if (kFault == GroupFault::kRegistersOfSomeWarps && (!wrong || Warp() != 2)) TakeRegisters<200>();
  float d[32], other[32];
#pragma unroll
  for (int i = 0; i < 32; ++i) d[i] = other[i] = 0.0f;
  if (kFault == GroupFault::kNotNamedByFence && wrong) {
    GroupMmaFence(other);
  } else if (kFault != GroupFault::kNotFenced || !wrong) {
    GroupMmaFence(d, other);
  }
  if (kFault == GroupFault::kThreeWarps && wrong && Warp() == 3) return;
  const bool odd = wrong && ((kFault == GroupFault::kDifferentOperands && Warp() == 3) ||
                             kFault == GroupFault::kMisalignedOperand);
  GroupMmaBf16<64>(d, RowsAt(tiles.a, 0), RowsAt(tiles.b[0] + (odd ? 512 : 0), 0), true);
  GroupMmaCommit();
  if (kFault == GroupFault::kNeverWaited && wrong) return;
  if (kFault == GroupFault::kReadBeforeWait && wrong) args.out[ThreadIndex()] = d[3];
  if (kFault == GroupFault::kOperandOverwritten) {
    if (!wrong) GroupMmaWait<0>(d);
    SyncBlock();
    tiles.b[0][ThreadIndex()] = 1;
  }
  if (kFault == GroupFault::kNotNamedByWait && wrong) {
    GroupMmaWait<0>(other);
  } else {
    GroupMmaWait<0>(d);
  }
  if (kFault == GroupFault::kOverwrittenBehindOwnWait) {
    if (!wrong) SyncBlock();
    if (Warp() == 0) tiles.b[0][Lane()] = 1;
  }
  Store<64>(d, args.out);
}

template <GroupFault kFault>
cudaError_t LaunchFaulty(const GroupArgs& args, cudaStream_t stream) {
  return Launch(GroupFaulty<kFault>,
                {.threads = kThreads, .shared_bytes = sizeof(Tiles), .stream = stream}, args);
}

template <int kFirst = 0>
cudaError_t LaunchNumbered(int fault, const GroupArgs& args, cudaStream_t stream) {
  if constexpr (kFirst > static_cast<int>(GroupFault::kBoxBytesUnexpected)) {
    return cudaErrorInvalidValue;
  } else {
    if (fault == kFirst) return LaunchFaulty<static_cast<GroupFault>(kFirst)>(args, stream);
    return LaunchNumbered<kFirst + 1>(fault, args, stream);
  }
}

}  // namespace

cudaError_t LaunchRowsTimesRows(const GroupArgs& args, cudaStream_t stream) {
  return Launch(RowsTimesRows,
                {.threads = kThreads, .shared_bytes = sizeof(Tiles), .stream = stream}, args);
}
cudaError_t LaunchRegistersTimesColumns(const GroupArgs& args, cudaStream_t stream) {
  return Launch(RegistersTimesColumns,
                {.threads = kThreads, .shared_bytes = sizeof(Tiles), .stream = stream}, args);
}
cudaError_t LaunchCodes(const GroupArgs& args, cudaStream_t stream) {
  return Launch(Codes, {.threads = kThreads, .shared_bytes = sizeof(Tiles), .stream = stream},
                args);
}
cudaError_t LaunchGroupFault(GroupFault fault, const GroupArgs& args, cudaStream_t stream) {
  return LaunchNumbered(static_cast<int>(fault), args, stream);
}

}  // namespace baton::simt
