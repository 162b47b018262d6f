#ifndef BATON_KERNELS_CUDA_DEVICE_H_
#define BATON_KERNELS_CUDA_DEVICE_H_

// What kernels may use of a GPU, once, in C++: the only door between the .cu files and the machine.
// It has two implementations, chosen by the include path, never by #if: native/ (PTX,
// for nvcc) and tests/simt/device/ (an emulation that executes the same .cu files on
// the CPU and checks what they do). Kernels contain no intrinsics, no inline PTX, no built-in
// variables, no __shared__ arrays and no <<<>>>.
//
// A kernel is a function that takes one struct by value:
//
//   BATON_KERNEL(kThreads) ScaleRows(const ScaleRowsArgs args) { ... }
//   cudaError_t status = Launch(ScaleRows, {.grid = dim3(rows), .threads = kThreads,
//                                           .shared_bytes = sizeof(Tile), .stream = s}, args);
//
// Blocks are one-dimensional. What threads of a block share is one struct, SharedMemory<T>(), not
// initialized, aligned to 1024 bytes. Pointers in `args` are device memory.
//
// Arithmetic: nvcc is called with --fmad=false, so a multiply-add is fused exactly where the source
// says fmaf; sums of floats then have the same bits on the GPU and in the emulation, except behind
// the matrix instructions and Exp2.

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime_api.h>
#include <vector_types.h>

#include <cmath>
#include <cstddef>
#include <cstdint>

// BATON_KERNEL(threads) name(const Args args): a kernel launched with exactly `threads` threads a
// block. BATON_DEVICE: a function of kernels, always inlined. BATON_GRID_CONSTANT in front of a
// kernel's argument: it is not copied for each thread, as those with a TensorMap must not be.
#include <device_macros.h>

#include "kernels/cuda/tensor_map.h"

namespace baton::kernels::cuda {

inline constexpr int kWarpSize = 32;
inline constexpr uint32_t kAllLanes = 0xFFFFFFFFu;

struct LaunchShape {
  dim3 grid = dim3(1);
  int threads = 0;          // of a block: a multiple of 32, at most 1024
  size_t shared_bytes = 0;  // at most 227 KiB on Hopper, 99 KiB on Ada
  cudaStream_t stream = nullptr;
};

// Enqueues the kernel; an empty grid is an error. The arguments are copied.
template <typename Args>
cudaError_t Launch(void (*kernel)(Args), const LaunchShape& shape, const Args& args);

// --- where a thread is

BATON_DEVICE int ThreadIndex();   // in the block
BATON_DEVICE int BlockThreads();  // threads of the block
BATON_DEVICE int BlockX();
BATON_DEVICE int BlockY();
BATON_DEVICE int BlockZ();
BATON_DEVICE int GridX();  // blocks of the grid along x
BATON_DEVICE int GridY();
BATON_DEVICE int Lane();  // in the warp
BATON_DEVICE int Warp();  // in the block

// --- shared memory and barriers

template <typename T>
BATON_DEVICE T& SharedMemory();

// All threads of the block, from one place of the source; orders their accesses to shared and
// global memory.
BATON_DEVICE void SyncBlock();
// All lanes of the warp; orders their accesses.
BATON_DEVICE void SyncWarp();
// `threads` threads (a multiple of 32; whole warps) that name barrier `id` (1..15).
BATON_DEVICE void SyncSome(int id, int threads);
// The block stops with an error that names this place.
BATON_DEVICE void Trap();

// --- warp: all 32 lanes call together; none of it orders accesses to memory

template <typename T>  // 4 or 8 bytes
BATON_DEVICE T ShuffleXor(T value, int lane_mask);
template <typename T>
BATON_DEVICE T ShuffleFrom(T value, int lane);
template <typename T>  // from `delta` lanes below; those without one keep their own
BATON_DEVICE T ShuffleUp(T value, int delta);
template <typename T>  // from `delta` lanes above
BATON_DEVICE T ShuffleDown(T value, int delta);
BATON_DEVICE uint32_t Ballot(bool predicate);
BATON_DEVICE bool AnyLane(bool predicate);
BATON_DEVICE bool AllLanes(bool predicate);
// Butterfly sums: every lane gets the same bits.
template <typename T>
BATON_DEVICE T WarpSum(T value) {
#pragma unroll
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) value += ShuffleXor(value, mask);
  return value;
}
BATON_DEVICE float WarpMax(float value) {
#pragma unroll
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
    value = fmaxf(value, ShuffleXor(value, mask));
  }
  return value;
}

// --- atomics on global or shared memory, relaxed; return the value before

BATON_DEVICE int32_t AtomicAdd(int32_t* address, int32_t value);
BATON_DEVICE uint32_t AtomicOr(uint32_t* address, uint32_t value);
BATON_DEVICE int32_t AtomicMax(int32_t* address, int32_t value);
BATON_DEVICE int32_t AtomicMin(int32_t* address, int32_t value);

// --- asynchronous copies, global to shared (sm_80 and later)

// 16 bytes, both sides aligned to 16; bytes at and behind `valid` (0..16) become 0 and are not
// read.
BATON_DEVICE void CopyAsync16(void* shared, const void* global, int valid = 16);
// Closes the group of this thread's copies so far.
BATON_DEVICE void CopyAsyncCommit();
// Until at most `kPending` of this thread's latest groups are under way. Other threads see the
// bytes after a barrier.
template <int kPending>
BATON_DEVICE void CopyAsyncWait();

// --- transactions (sm_90 and later): an object in shared memory that arrivals and bytes complete

struct alignas(8) TransactionBarrier {
  uint64_t state;
};
// By one thread, followed by a barrier; `arrivals` complete a phase.
BATON_DEVICE void InitTransaction(TransactionBarrier* barrier, int arrivals);
// Arrives and adds `bytes` that must come before the phase is complete.
BATON_DEVICE void ArriveExpecting(TransactionBarrier* barrier, int bytes);
BATON_DEVICE void Arrive(TransactionBarrier* barrier);
// Until the phase of this parity (0 first, then 1, 0, ...) is complete; orders what came before.
BATON_DEVICE void AwaitTransaction(TransactionBarrier* barrier, int parity);
// Contiguous copy global to shared by the copy engine: both aligned to 16, bytes a multiple of 16.
// Counts into the barrier's bytes.
BATON_DEVICE void CopyBulk(void* shared, const void* global, int bytes,
                           TransactionBarrier* barrier);

// A box of a tensor (kernels/cuda/tensor_map.h), the one whose first element is (column, row,
// layer), to shared memory by the copy engine: `shared` aligned to 1024, row r of the box at byte
// 128 r, its pieces of 16 bytes where SwizzledByte says. Elements outside of the tensor become 0.
// Counts all of the box into the barrier's bytes.
BATON_DEVICE void CopyTensor(void* shared, const TensorMap* map, int column, int row, int layer,
                             TransactionBarrier* barrier);
// Has the copy engine fetch a map that it will need, while other things go on.
BATON_DEVICE void PrefetchTensorMap(const TensorMap* map);
// Makes what this thread has written to shared memory, by stores or CopyAsync16, known to the copy
// engine and to matrix instructions of warpgroups: by each thread that wrote, in front of the
// barrier behind which they use it.
BATON_DEVICE void FenceAsyncProxy();

// --- matrix instructions: all 32 lanes together

// Four 8x8 matrices of 16-bit values from shared memory: lane l gives the address of row l % 8 of
// matrix l / 8 (16 bytes, aligned to 16), and gets of matrix i the values (row l / 4, columns
// 2 * (l % 4) and the next) in out[i], the lower column in the lower half.
BATON_DEVICE void LoadMatrix4(uint32_t (&out)[4], const void* row);
// The same of the transposed matrices.
BATON_DEVICE void LoadMatrix4Transposed(uint32_t (&out)[4], const void* row);

// d += a b: a is 16x16 BF16 by rows, b 16x8 BF16 by columns, d 16x8 F32. With g = lane / 4 and
// q = lane % 4 a lane holds
//   a: [g][2q, 2q+1], [g+8][2q..], [g][2q+8..], [g+8][2q+8..]
//   b: [2q, 2q+1][g], [2q+8, 2q+9][g]
//   d: [g][2q], [g][2q+1], [g+8][2q], [g+8][2q+1]
// An output's bits depend on its own row of a and column of b alone.
BATON_DEVICE void MmaBf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
// a 16x32 E4M3 by rows, b 32x8 E4M3 by columns: as MmaBf16 with four values of 8 bits where that
// has two of 16: a: [g][4q..4q+3], [g+8][4q..], [g][4q+16..], [g+8][4q+16..]; b: [4q..][g],
// [4q+16..][g]. (sm_89 and later)
BATON_DEVICE void MmaE4M3(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

// --- matrix instructions of warpgroups (sm_90a): the 128 threads of four warps, the first of them
// a multiple of 4, together

// Their operands lie in shared memory in rows of 128 bytes, eight of them from a multiple of 1024
// on. In row r, piece p of 16 bytes lies where piece p ^ (r % 8) would, so that what an instruction
// reads at once lies on different banks: this is byte `byte` of row `row`, from the first row on.
constexpr BATON_DEVICE int SwizzledByte(int row, int byte) {
  return row * 128 + (byte ^ (row % 8 * 16));
}

// An operand whose rows (of a) or columns (of b) are the rows, `byte` (a multiple of 32) of each
// being the first k.
struct OperandByRows {
  uint64_t bits;
};
BATON_DEVICE OperandByRows RowsAt(const void* rows, int byte);
// An operand b whose k are the rows; 64 columns of BF16 in a row, the next 64 `bytes` behind.
struct OperandByColumns {
  uint64_t bits;
};
BATON_DEVICE OperandByColumns ColumnsAt(const void* rows, int bytes);

// d = a b, with `add` d += a b: a is 64x16 BF16, b 16xkN BF16, d 64xkN F32. Warp w of the group has
// rows 16 w .. 16 w + 15; with g = lane / 4 and q = lane % 4 a lane holds of its warp's
//   a: as MmaBf16
//   d: [g][8i + 2q], [g][8i + 2q + 1], [g + 8][8i + 2q], [g + 8][8i + 2q + 1] in d[4i] .. d[4i + 3]
// An output's bits depend on its own row of a and column of b alone.
//
// The instruction runs on behind the call. Until a GroupMmaWait that names them nobody touches d or
// a's registers, and nobody writes the operands in shared memory before all four warps have waited.
// In front of the first instruction, and of one that uses registers touched since, stands a
// GroupMmaFence that names them. Arrays in registers have constant indices.
template <int kN>
BATON_DEVICE void GroupMmaBf16(float (&d)[kN / 2], OperandByRows a, OperandByRows b, bool add);
template <int kN>
BATON_DEVICE void GroupMmaBf16(float (&d)[kN / 2], const uint32_t (&a)[4], OperandByRows b,
                               bool add);
template <int kN>
BATON_DEVICE void GroupMmaBf16(float (&d)[kN / 2], const uint32_t (&a)[4], OperandByColumns b,
                               bool add);
// The same with a 64x32 E4M3 and b 32xkN E4M3.
template <int kN>
BATON_DEVICE void GroupMmaE4M3(float (&d)[kN / 2], OperandByRows a, OperandByRows b, bool add);
// `registers`: arrays of float or uint32_t.
template <typename... Registers>
BATON_DEVICE void GroupMmaFence(Registers&... registers);
// Closes the group of this warp's instructions so far.
BATON_DEVICE void GroupMmaCommit();
// Until at most `kPending` of the latest groups are under way.
template <int kPending, typename... Registers>
BATON_DEVICE void GroupMmaWait(Registers&... registers);

// Each thread of this warpgroup has `kCount` registers from here on, a multiple of 8 from 24 to
// 240: a block begins with the same number for all, and roles that need few leave theirs to the
// others. GiveRegisters for fewer than before, TakeRegisters for more, which waits until they are
// there.
template <int kCount>
BATON_DEVICE void GiveRegisters();
template <int kCount>
BATON_DEVICE void TakeRegisters();

// --- numbers

// 2^x to about two units of the last place; 0 for -infinity.
BATON_DEVICE float Exp2(float x);
BATON_DEVICE float Bf16ToFloat(uint16_t bits);
BATON_DEVICE uint16_t FloatToBf16(float value);  // to nearest, ties to even
BATON_DEVICE float E4M3ToFloat(uint8_t code);
// Four E4M3 codes, the lowest byte first, as BF16, exactly: pairs[0] holds the first two.
BATON_DEVICE void E4M3ToBf16(uint32_t codes, uint32_t (&pairs)[2]);
// To nearest, ties to even; saturates at 448; NaN stays NaN.
BATON_DEVICE uint8_t FloatToE4M3(float value);
// Two BF16 in one word, `low` in the lower half.
BATON_DEVICE uint32_t PackBf16(float low, float high);

}  // namespace baton::kernels::cuda

#include <device_inline.h>

#endif  // BATON_KERNELS_CUDA_DEVICE_H_
