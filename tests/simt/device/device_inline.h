#ifndef BATON_TESTS_SIMT_DEVICE_DEVICE_INLINE_H_
#define BATON_TESTS_SIMT_DEVICE_DEVICE_INLINE_H_

// The emulation's side of kernels/cuda/device.h: everything is a call into tests/simt, which knows
// from where it was called. Included by device.h alone.

#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "tests/simt/launch.h"

namespace baton::kernels::cuda {

// Not inlined, not instrumented: the copy of the arguments is the launch's, not the kernel's.
template <typename Args>
__attribute__((noinline, no_sanitize("thread"))) void InvokeKernel(const void* kernel,
                                                                   const void* args) {
  reinterpret_cast<void (*)(Args)>(reinterpret_cast<uintptr_t>(kernel))(
      *static_cast<const Args*>(args));
}

template <typename Args>
cudaError_t Launch(void (*kernel)(Args), const LaunchShape& shape, const Args& args) {
  static_assert(std::is_trivially_copyable_v<Args>);
  return simt::calls::LaunchKernel(reinterpret_cast<const void*>(kernel), &InvokeKernel<Args>,
                                   &args, sizeof(Args), shape.grid, shape.threads,
                                   shape.shared_bytes, shape.stream);
}

BATON_DEVICE int ThreadIndex() { return simt::calls::Thread(); }
BATON_DEVICE int BlockThreads() { return simt::calls::Threads(); }
BATON_DEVICE int BlockX() { return simt::calls::Block(0); }
BATON_DEVICE int BlockY() { return simt::calls::Block(1); }
BATON_DEVICE int BlockZ() { return simt::calls::Block(2); }
BATON_DEVICE int GridX() { return simt::calls::GridBlocks(0); }
BATON_DEVICE int GridY() { return simt::calls::GridBlocks(1); }
BATON_DEVICE int Lane() { return simt::calls::Thread() % kWarpSize; }
BATON_DEVICE int Warp() { return simt::calls::Thread() / kWarpSize; }

// --- shared memory and barriers

template <typename T>
BATON_DEVICE T& SharedMemory() {
  return *static_cast<T*>(simt::calls::SharedBytes(sizeof(T)));
}
BATON_DEVICE void SyncBlock() { simt::calls::SyncBlock(0, simt::calls::Threads()); }
BATON_DEVICE void SyncWarp() { simt::calls::SyncWarp(); }
BATON_DEVICE void SyncSome(int id, int threads) { simt::calls::SyncBlock(id, threads); }
BATON_DEVICE void Trap() { simt::calls::Trap(); }

// --- warp

namespace detail {
template <typename T>
BATON_DEVICE T Shuffle(T value, int source) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  return std::bit_cast<T>(
      static_cast<Bits>(simt::calls::Shuffle(std::bit_cast<Bits>(value), source)));
}
}  // namespace detail

template <typename T>
BATON_DEVICE T ShuffleXor(T value, int lane_mask) {
  return detail::Shuffle(value, Lane() ^ lane_mask);
}
template <typename T>
BATON_DEVICE T ShuffleFrom(T value, int lane) {
  return detail::Shuffle(value, lane % kWarpSize);
}
template <typename T>
BATON_DEVICE T ShuffleUp(T value, int delta) {
  return detail::Shuffle(value, Lane() >= delta ? Lane() - delta : Lane());
}
template <typename T>
BATON_DEVICE T ShuffleDown(T value, int delta) {
  return detail::Shuffle(value, Lane() + delta < kWarpSize ? Lane() + delta : Lane());
}
BATON_DEVICE uint32_t Ballot(bool predicate) { return simt::calls::Ballot(predicate); }
BATON_DEVICE bool AnyLane(bool predicate) { return simt::calls::Ballot(predicate) != 0; }
BATON_DEVICE bool AllLanes(bool predicate) { return simt::calls::Ballot(predicate) == kAllLanes; }

// --- atomics

BATON_DEVICE int32_t AtomicAdd(int32_t* address, int32_t value) {
  return static_cast<int32_t>(
      simt::calls::Atomic(simt::calls::AtomicOp::kAdd, address, static_cast<uint32_t>(value)));
}
BATON_DEVICE uint32_t AtomicOr(uint32_t* address, uint32_t value) {
  return simt::calls::Atomic(simt::calls::AtomicOp::kOr, address, value);
}
BATON_DEVICE int32_t AtomicMax(int32_t* address, int32_t value) {
  return static_cast<int32_t>(
      simt::calls::Atomic(simt::calls::AtomicOp::kMax, address, static_cast<uint32_t>(value)));
}
BATON_DEVICE int32_t AtomicMin(int32_t* address, int32_t value) {
  return static_cast<int32_t>(
      simt::calls::Atomic(simt::calls::AtomicOp::kMin, address, static_cast<uint32_t>(value)));
}

// --- asynchronous copies

BATON_DEVICE void CopyAsync16(void* shared, const void* global, int valid) {
  simt::calls::CopyAsync(shared, global, valid);
}
BATON_DEVICE void CopyAsyncCommit() { simt::calls::CopyAsyncCommit(); }
template <int kPending>
BATON_DEVICE void CopyAsyncWait() {
  simt::calls::CopyAsyncWait(kPending);
}

// --- transactions

BATON_DEVICE void InitTransaction(TransactionBarrier* barrier, int arrivals) {
  simt::calls::InitTransaction(barrier, arrivals);
}
BATON_DEVICE void ArriveExpecting(TransactionBarrier* barrier, int bytes) {
  simt::calls::ArriveTransaction(barrier, bytes);
}
BATON_DEVICE void Arrive(TransactionBarrier* barrier) {
  simt::calls::ArriveTransaction(barrier, 0);
}
BATON_DEVICE void AwaitTransaction(TransactionBarrier* barrier, int parity) {
  simt::calls::AwaitTransaction(barrier, parity);
}
BATON_DEVICE void CopyBulk(void* shared, const void* global, int bytes,
                           TransactionBarrier* barrier) {
  simt::calls::CopyBulk(shared, global, bytes, barrier);
}

BATON_DEVICE void CopyTensor(void* shared, const TensorMap* map, int column, int row, int layer,
                             TransactionBarrier* barrier) {
  simt::calls::CopyTensor(shared, map, {column, row, layer}, barrier);
}
BATON_DEVICE void PrefetchTensorMap(const TensorMap* map) { simt::calls::PrefetchTensorMap(map); }
BATON_DEVICE void FenceAsyncProxy() { simt::calls::FenceAsyncProxy(); }

// --- matrix instructions

BATON_DEVICE void LoadMatrix4(uint32_t (&out)[4], const void* row) {
  simt::calls::LoadMatrix(out, row, false);
}
BATON_DEVICE void LoadMatrix4Transposed(uint32_t (&out)[4], const void* row) {
  simt::calls::LoadMatrix(out, row, true);
}
BATON_DEVICE void MmaBf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  simt::calls::Mma(simt::calls::WarpOp::kMmaBf16, d, a, b);
}
BATON_DEVICE void MmaE4M3(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  simt::calls::Mma(simt::calls::WarpOp::kMmaE4M3, d, a, b);
}

// --- matrix instructions of warpgroups

namespace detail {
// The instruction's own format, which tests/simt/group_mma.cc takes apart.
BATON_DEVICE uint64_t SwizzledMatrix(uint32_t address, int leading_bytes) {
  return uint64_t{1} << 62 | uint64_t{1024 / 16} << 32 |
         static_cast<uint64_t>(leading_bytes / 16) << 16 | address / 16;
}
}  // namespace detail

BATON_DEVICE OperandByRows RowsAt(const void* rows, int byte) {
  return {
      detail::SwizzledMatrix(simt::calls::SharedAddress(rows) + static_cast<uint32_t>(byte), 16)};
}
BATON_DEVICE OperandByColumns ColumnsAt(const void* rows, int bytes) {
  return {detail::SwizzledMatrix(simt::calls::SharedAddress(rows), bytes)};
}
template <int kN>
BATON_DEVICE void GroupMmaBf16(float (&d)[kN / 2], OperandByRows a, OperandByRows b, bool add) {
  simt::calls::IssueGroupMma({.d = d, .n = kN, .add = add, .a = a.bits, .b = b.bits});
}
template <int kN>
BATON_DEVICE void GroupMmaBf16(float (&d)[kN / 2], const uint32_t (&a)[4], OperandByRows b,
                               bool add) {
  simt::calls::IssueGroupMma({.d = d, .n = kN, .add = add, .a_registers = a, .b = b.bits});
}
template <int kN>
BATON_DEVICE void GroupMmaBf16(float (&d)[kN / 2], const uint32_t (&a)[4], OperandByColumns b,
                               bool add) {
  simt::calls::IssueGroupMma(
      {.d = d, .n = kN, .add = add, .b_by_columns = true, .a_registers = a, .b = b.bits});
}
template <int kN>
BATON_DEVICE void GroupMmaE4M3(float (&d)[kN / 2], OperandByRows a, OperandByRows b, bool add) {
  simt::calls::IssueGroupMma({.d = d, .n = kN, .e4m3 = true, .add = add, .a = a.bits, .b = b.bits});
}
template <typename... Registers>
BATON_DEVICE void GroupMmaFence(Registers&... registers) {
  const simt::calls::Registers named[] = {{registers, static_cast<int>(sizeof(registers))}...};
  simt::calls::GroupMmaFence(named, sizeof...(registers));
}
BATON_DEVICE void GroupMmaCommit() { simt::calls::GroupMmaCommit(); }
template <int kPending, typename... Registers>
BATON_DEVICE void GroupMmaWait(Registers&... registers) {
  const simt::calls::Registers named[] = {{registers, static_cast<int>(sizeof(registers))}...};
  simt::calls::GroupMmaWait(kPending, named, sizeof...(registers));
}
template <int kCount>
BATON_DEVICE void GiveRegisters() {
  static_assert(kCount >= 24 && kCount <= 240 && kCount % 8 == 0);
  simt::calls::SetRegisters(kCount);
}
template <int kCount>
BATON_DEVICE void TakeRegisters() {
  static_assert(kCount >= 24 && kCount <= 240 && kCount % 8 == 0);
  simt::calls::SetRegisters(kCount);
}

// --- numbers

BATON_DEVICE float Exp2(float x) { return std::exp2(x); }
BATON_DEVICE float Bf16ToFloat(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}
BATON_DEVICE uint16_t FloatToBf16(float value) {
  const __nv_bfloat16_raw raw = __float2bfloat16_rn(value);
  return raw.x;
}
BATON_DEVICE float E4M3ToFloat(uint8_t code) {
  return static_cast<float>(__half(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3)));
}
BATON_DEVICE void E4M3ToBf16(uint32_t codes, uint32_t (&pairs)[2]) {
  for (int i = 0; i < 2; ++i) {
    const uint32_t two = codes >> (16 * i);
    const uint32_t low = std::bit_cast<uint32_t>(E4M3ToFloat(static_cast<uint8_t>(two)));
    const uint32_t high = std::bit_cast<uint32_t>(E4M3ToFloat(static_cast<uint8_t>(two >> 8)));
    pairs[i] = low >> 16 | (high & 0xFFFF0000u);
  }
}
BATON_DEVICE uint8_t FloatToE4M3(float value) {
  return __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3);
}
BATON_DEVICE uint32_t PackBf16(float low, float high) {
  return static_cast<uint32_t>(FloatToBf16(low)) | (static_cast<uint32_t>(FloatToBf16(high)) << 16);
}

}  // namespace baton::kernels::cuda

#endif  // BATON_TESTS_SIMT_DEVICE_DEVICE_INLINE_H_
