#ifndef BATON_TESTS_SIMT_LAUNCH_H_
#define BATON_TESTS_SIMT_LAUNCH_H_

// What device_inline.h calls: a launch, and whatever a thread of a kernel does besides plain
// arithmetic and plain loads and stores. They tell the place in the kernel by their return address:
// kernels are compiled without sibling calls.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

// Its own namespace, so that kernels in baton::simt mean device.h's functions of these names.
namespace baton::simt::calls {

// Calls `kernel` with the arguments; compiled next to the kernel, which knows its type.
using Invoke = void (*)(const void* kernel, const void* args);

cudaError_t LaunchKernel(const void* kernel, Invoke invoke, const void* args, size_t args_bytes,
                         dim3 grid, int threads, size_t shared_bytes, cudaStream_t stream);

struct ThreadPlace {
  int thread, threads;
  int block[3];
  int grid[3];
};
// Of the calling thread of a kernel; the same for all of its life.
__attribute__((const)) int Thread();
__attribute__((const)) int Threads();
__attribute__((const)) int Block(int axis);
__attribute__((const)) int GridBlocks(int axis);
void* SharedBytes(size_t bytes);

void SyncBlock(int barrier, int threads);
void SyncWarp();
[[noreturn]] void Trap();

enum class WarpOp : uint8_t {
  kShuffle,
  kBallot,
  kLoadMatrix,
  kLoadMatrixTransposed,
  kMmaBf16,
  kMmaE4M3,
};
// 32 or 64 bits of lane `source` (of each lane's choosing).
uint64_t Shuffle(uint64_t value, int source);
uint32_t Ballot(bool predicate);
void LoadMatrix(uint32_t* out, const void* row, bool transposed);
void Mma(WarpOp op, float* d, const uint32_t* a, const uint32_t* b);

enum class AtomicOp : uint8_t { kAdd, kOr, kMax, kMin };
uint32_t Atomic(AtomicOp op, void* address, uint32_t value);

void CopyAsync(void* shared, const void* global, int valid);
void CopyAsyncCommit();
void CopyAsyncWait(int pending);

// One instruction of a warpgroup, of a warp's lane.
struct GroupMma {
  float* d = nullptr;  // [n / 2]
  int n = 0;
  bool e4m3 = false;  // else BF16
  bool add = false;
  bool b_by_columns = false;
  const uint32_t* a_registers = nullptr;  // [4]; null: a
  uint64_t a = 0, b = 0;                  // as the instruction takes them
};
void IssueGroupMma(const GroupMma& mma);
struct Registers {
  const void* data = nullptr;
  int bytes = 0;
};
void GroupMmaFence(const Registers* named, int count);
void GroupMmaCommit();
void GroupMmaWait(int pending, const Registers* named, int count);
void SetRegisters(int count);
void FenceAsyncProxy();
// Byte of the block's shared memory.
uint32_t SharedAddress(const void* pointer);

void InitTransaction(void* barrier, int arrivals);
void ArriveTransaction(void* barrier, int bytes);
void AwaitTransaction(void* barrier, int parity);
void CopyBulk(void* shared, const void* global, int bytes, void* barrier);
void CopyTensor(void* shared, const void* map, const int (&at)[3], void* barrier);
void PrefetchTensorMap(const void* map);

}  // namespace baton::simt::calls

#endif  // BATON_TESTS_SIMT_LAUNCH_H_
