#ifndef BATON_TESTS_SIMT_KERNELS_H_
#define BATON_TESTS_SIMT_KERNELS_H_

// Kernels for the emulation's own tests: right ones, and one with each fault it must find.

#include <cuda_runtime_api.h>

#include <cstdint>

namespace baton::simt {

struct TestArgs {
  const float* in = nullptr;
  float* out = nullptr;
  int32_t* counter = nullptr;
  const uint16_t* a = nullptr;  // matrices
  const uint16_t* b = nullptr;
  const uint8_t* a8 = nullptr;
  const uint8_t* b8 = nullptr;
  int n = 0;
  int mode = 0;
};

// What a planted fault is.
enum class Planted : uint8_t {
  kReadBehindGlobal,
  kWriteBehindShared,
  kUninitializedGlobal,
  kUninitializedShared,
  kHostPointer,
  kMisaligned,
  kDivergentBarrier,
  kMissingThread,  // returned while others wait
  kDivergentShuffle,
  kSharedRace,       // read what another thread writes, without a barrier
  kSharedOverwrite,  // write what another thread still reads
  kWarpRace,         // lanes exchange through memory without SyncWarp
  kGlobalRace,       // two blocks write one word
  kCopyNotAwaited,
  kCopyNotShared,  // another thread reads a copy without a barrier
  kBulkNotAwaited,
  kTransactionForever,  // bytes that never come
  kTrap,
  kTooMuchShared,
  kBadShape,
};

cudaError_t LaunchSum(const TestArgs& args, int blocks, cudaStream_t stream);
cudaError_t LaunchScale(const TestArgs& args, int blocks, cudaStream_t stream);
cudaError_t LaunchTile(const TestArgs& args, cudaStream_t stream);
cudaError_t LaunchPipeline(const TestArgs& args, cudaStream_t stream);
cudaError_t LaunchMatrices(const TestArgs& args, cudaStream_t stream);
cudaError_t LaunchCount(const TestArgs& args, int blocks, cudaStream_t stream);
cudaError_t LaunchPlanted(Planted planted, const TestArgs& args, cudaStream_t stream);

}  // namespace baton::simt

#endif  // BATON_TESTS_SIMT_KERNELS_H_
