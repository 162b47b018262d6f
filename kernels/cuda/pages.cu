#include "kernels/cuda/pages.h"

#include "kernels/cuda/device.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kStripe = 64;
// A lane takes the words Lane(), Lane() + 32, ... of a block: always those of accumulator
// Lane() % 8.
constexpr int kWordsPerLane = kChecksumBlock / 8 / kWarpSize;

enum class Move { kGather, kSums, kScatter };

BATON_DEVICE uint64_t Product(uint64_t value) { return (value & 0xFFFFFFFFu) * (value >> 32); }

// The last piece that begins at or before a byte of the message.
BATON_DEVICE int PieceAt(const PagesLaunch& args, int64_t byte) {
  int low = 0, high = args.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (args.pieces[middle].message <= byte) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// Moves one unit, and returns it; `piece` only ever moves up.
template <typename Unit, Move kMove>
BATON_DEVICE uint64_t MoveUnit(const PagesLaunch& args, int64_t byte, int* piece) {
  Unit* const in_message = reinterpret_cast<Unit*>(args.message + byte);
  if constexpr (kMove == Move::kSums) {
    return *in_message;
  } else {
    while (args.pieces[*piece + 1].message <= byte) ++*piece;
    const PagePiece at = args.pieces[*piece];
    Unit* const in_page = reinterpret_cast<Unit*>(args.pages + at.page + (byte - at.message));
    const Unit value = kMove == Move::kGather ? *in_page : *in_message;
    *(kMove == Move::kGather ? in_message : in_page) = value;
    return value;
  }
}

// Eight bytes of the message, fewer at its end.
template <typename Unit, Move kMove>
BATON_DEVICE uint64_t MoveWord(const PagesLaunch& args, int64_t byte, int* piece) {
  uint64_t word = 0;
#pragma unroll 1
  for (int i = 0; i < 8; i += static_cast<int>(sizeof(Unit))) {
    if (byte + i < args.bytes) {
      word |= MoveUnit<Unit, kMove>(args, byte + i, piece) << (8 * i);
    }
  }
  return word;
}

template <typename Unit, Move kMove>
BATON_KERNEL(kThreads)
PagesKernel(const PagesLaunch args) {
  // In registers for the variant that should be fast; the other one has none to spare.
  const uint64_t* const secret = args.secret + Lane() / kChecksumLanes + Lane() % kChecksumLanes;
  uint64_t keys[kWordsPerLane];
#pragma unroll
  for (int j = 0; j < kWordsPerLane; ++j) keys[j] = secret[4 * j];
  const int64_t blocks = (args.bytes + kChecksumBlock - 1) / kChecksumBlock;
  for (int64_t block = int64_t{BlockX()} * kWarps + Warp(); block < blocks;
       block += int64_t{GridX()} * kWarps) {
    const int64_t begin = block * kChecksumBlock;
    int piece = kMove == Move::kSums ? 0 : PieceAt(args, begin);
    uint64_t sum = 0;
#pragma unroll
    for (int j = 0; j < kWordsPerLane; ++j) {
      const int in_block = (j * kWarpSize + Lane()) * 8;
      const uint64_t word = MoveWord<Unit, kMove>(args, begin + in_block, &piece);
      if constexpr (kMove != Move::kScatter) {
        const uint64_t neighbour = ShuffleXor(word, 1);
        // A stripe that ends with the message, or behind it, is no part of the sums.
        if (begin + (in_block / kStripe + 1) * kStripe < args.bytes) {
          sum += neighbour + Product(word ^ (sizeof(Unit) == 8 ? keys[j] : secret[4 * j]));
        }
      }
    }
    if constexpr (kMove != Move::kScatter) {
      sum += ShuffleXor(sum, 8);
      sum += ShuffleXor(sum, 16);
      if (Lane() < kChecksumLanes) args.sums[block * kChecksumLanes + Lane()] = sum;
    }
  }
}

template <Move kMove>
cudaError_t LaunchMove(const PagesLaunch& args, int blocks, cudaStream_t stream) {
  const int64_t needed = (args.bytes + kChecksumBlock * kWarps - 1) / (kChecksumBlock * kWarps);
  const int64_t grid = needed < blocks ? needed : blocks;
  return Launch(args.words ? PagesKernel<uint64_t, kMove> : PagesKernel<uint8_t, kMove>,
                {.grid = dim3(static_cast<unsigned>(grid)), .threads = kThreads, .stream = stream},
                args);
}

// --- the chain

constexpr int kChainThreads = 128;
constexpr int kTile = 128;  // blocks of the message
constexpr int kTileWords = kTile * kChecksumLanes;

struct ChainArgs {
  PagesLaunch pages;
  uint64_t* out = nullptr;
};

struct ChainShared {
  uint64_t sums[2][kTileWords];
};

constexpr uint64_t kPrime32_1 = 0x9E3779B1, kPrime32_2 = 0x85EBCA77, kPrime32_3 = 0xC2B2AE3D;
constexpr uint64_t kPrime64_1 = 0x9E3779B185EBCA87, kPrime64_2 = 0xC2B2AE3D27D4EB4F,
                   kPrime64_3 = 0x165667B19E3779F9, kPrime64_4 = 0x85EBCA77C2B2AE63,
                   kPrime64_5 = 0x27D4EB2F165667C5;

BATON_DEVICE uint64_t FirstAccumulator(int lane) {
  switch (lane) {
    case 0:
      return kPrime32_3;
    case 1:
      return kPrime64_1;
    case 2:
      return kPrime64_2;
    case 3:
      return kPrime64_3;
    case 4:
      return kPrime64_4;
    case 5:
      return kPrime32_2;
    case 6:
      return kPrime64_5;
    default:
      return kPrime32_1;
  }
}

// Eight bytes of the secret from a byte on that is no multiple of 8.
BATON_DEVICE uint64_t SecretAt(const PagesLaunch& args, int byte) {
  const int shift = byte % 8 * 8;
  return args.secret[byte / 8] >> shift | args.secret[byte / 8 + 1] << (64 - shift);
}

BATON_DEVICE void PrefetchSums(const PagesLaunch& args, int64_t tile, int64_t words,
                               uint64_t* shared) {
  const int64_t begin = tile * kTileWords;
  for (int i = 2 * ThreadIndex(); i < kTileWords && begin + i < words; i += 2 * kChainThreads) {
    CopyAsync16(shared + i, args.sums + begin + i);
  }
  CopyAsyncCommit();
}

// The last 64 bytes, and the accumulators folded to one number. All lanes hold the accumulator of
// Lane() % 8.
BATON_DEVICE uint64_t FinishChecksum(const PagesLaunch& args, uint64_t accumulator) {
  const int lane = Lane() % kChecksumLanes;
  const uint8_t* const last = args.message + args.bytes - kStripe + 8 * lane;
  uint64_t word = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) word |= uint64_t{last[i]} << (8 * i);
  accumulator += ShuffleXor(word, 1) + Product(word ^ SecretAt(args, 121 + 8 * lane));
  const uint64_t mixed = accumulator ^ SecretAt(args, 11 + 8 * lane);
  const unsigned __int128 product = static_cast<unsigned __int128>(mixed) * ShuffleXor(mixed, 1);
  const uint64_t folded = static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
  const bool counts = Lane() < kChecksumLanes && Lane() % 2 == 0;
  uint64_t hash = static_cast<uint64_t>(args.bytes) * kPrime64_1 + WarpSum(counts ? folded : 0);
  hash = (hash ^ hash >> 37) * 0x165667919E3779F9u;
  return hash ^ hash >> 32;
}

BATON_KERNEL(kChainThreads) PagesChecksumKernel(const ChainArgs args) {
  auto& shared = SharedMemory<ChainShared>();
  const PagesLaunch& pages = args.pages;
  const int64_t full = (pages.bytes - 1) / kChecksumBlock;  // blocks that end in a scramble
  const int64_t words = (full + 1) * kChecksumLanes;
  const int lane = Lane() % kChecksumLanes;
  const uint64_t key = pages.secret[16 + lane];
  uint64_t accumulator = FirstAccumulator(lane);
  const int64_t tiles = (full + kTile) / kTile;
  PrefetchSums(pages, 0, words, shared.sums[0]);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    PrefetchSums(pages, tile + 1, words, shared.sums[(tile + 1) % 2]);
    CopyAsyncWait<1>();
    SyncBlock();
    if (Warp() == 0) {
      const uint64_t* const sums = shared.sums[tile % 2] + lane;
      const int64_t left = full - tile * kTile;
      const int scrambled = left < kTile ? static_cast<int>(left) : kTile;
#pragma unroll 8
      for (int i = 0; i < scrambled; ++i) {
        accumulator += sums[i * kChecksumLanes];
        accumulator = (accumulator ^ accumulator >> 47 ^ key) * kPrime32_1;
      }
      if (left < kTile) accumulator += sums[left * kChecksumLanes];
    }
    SyncBlock();
  }
  if (Warp() != 0) return;
  const uint64_t checksum = FinishChecksum(pages, accumulator);
  if (Lane() == 0) *args.out = checksum;
}

}  // namespace

cudaError_t LaunchPagesGather(const PagesLaunch& args, int blocks, cudaStream_t stream) {
  return LaunchMove<Move::kGather>(args, blocks, stream);
}

cudaError_t LaunchPagesSums(const PagesLaunch& args, int blocks, cudaStream_t stream) {
  return LaunchMove<Move::kSums>(args, blocks, stream);
}

cudaError_t LaunchPagesScatter(const PagesLaunch& args, int blocks, cudaStream_t stream) {
  return LaunchMove<Move::kScatter>(args, blocks, stream);
}

cudaError_t LaunchPagesChecksum(const PagesLaunch& args, uint64_t* out, cudaStream_t stream) {
  return Launch(PagesChecksumKernel,
                {.threads = kChainThreads, .shared_bytes = sizeof(ChainShared), .stream = stream},
                ChainArgs{.pages = args, .out = out});
}

}  // namespace baton::kernels::cuda
