#ifndef BATON_KERNELS_CUDA_PAGES_H_
#define BATON_KERNELS_CUDA_PAGES_H_

// Entries of pages to and from one message, and the message's XXH3 (64 bits, seeded).
//
// XXH3 of more than 240 bytes adds, for each block of 1024 bytes, one sum of its stripes to each of
// eight 64-bit accumulators, and scrambles these behind each full block. The sums do not depend on
// the accumulators: they are computed wherever the bytes pass, by all SMs. What is left to one warp
// is the chain of additions and scrambles, a step for each 1024 bytes.

#include <cuda_runtime_api.h>

#include <cstdint>

namespace baton::kernels::cuda {

// Shorter ones have other formulas, and no kernel.
inline constexpr int64_t kShortestChecksum = 241;
inline constexpr int kChecksumLanes = 8;
inline constexpr int64_t kChecksumBlock = 1024;
inline constexpr int kSecretWords = 24;

// Bytes of the message at and behind `message`, up to the next piece, are those of the pages at and
// behind `page`.
struct PagePiece {
  int64_t message = 0;
  int64_t page = 0;
};

struct PagesLaunch {
  uint8_t* pages = nullptr;
  uint8_t* message = nullptr;
  int64_t bytes = 0;  // of the message, > 0
  const PagePiece* pieces =
      nullptr;               // [count + 1] ascending from 0; the last one stands at `bytes`
  int count = 0;             // > 0
  bool words = false;        // all addresses, offsets and lengths are multiples of 8
  uint64_t* sums = nullptr;  // [ceil(bytes / 1024), 8]; 16-byte aligned
  uint64_t secret[kSecretWords] = {};  // of the seed: XXH3_generateSecret_fromSeed
};
// A warp for each 1024 bytes of the message, in at most `blocks` thread blocks.
// pages -> message, and sums.
cudaError_t LaunchPagesGather(const PagesLaunch& args, int blocks, cudaStream_t stream);
// message -> sums. Neither pages nor pieces are read.
cudaError_t LaunchPagesSums(const PagesLaunch& args, int blocks, cudaStream_t stream);
// message -> pages. Sums are neither read nor written.
cudaError_t LaunchPagesScatter(const PagesLaunch& args, int blocks, cudaStream_t stream);

// The checksum of `message` (at least kShortestChecksum bytes) from its sums, to `out`, in the
// GPU's memory.
cudaError_t LaunchPagesChecksum(const PagesLaunch& args, uint64_t* out, cudaStream_t stream);

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_PAGES_H_
