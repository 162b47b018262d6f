#ifndef BATON_KERNELS_CUDA_NATIVE_DEVICE_INLINE_H_
#define BATON_KERNELS_CUDA_NATIVE_DEVICE_INLINE_H_

// nvcc's side of device.h: built-in variables, intrinsics and PTX (PTX ISA 8.5), and nothing else.
// Included by device.h alone.

namespace baton::kernels::cuda {

template <typename Args>
cudaError_t Launch(void (*kernel)(Args), const LaunchShape& shape, const Args& args) {
  const void* function = reinterpret_cast<const void*>(kernel);
  if (shape.shared_bytes > 48 * 1024) {
    const cudaError_t allowed =
        cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shape.shared_bytes));
    if (allowed != cudaSuccess) return allowed;
  }
  void* params[] = {const_cast<Args*>(&args)};
  return cudaLaunchKernel(function, shape.grid, dim3(static_cast<unsigned>(shape.threads)), params,
                          shape.shared_bytes, shape.stream);
}

BATON_DEVICE int ThreadIndex() { return static_cast<int>(threadIdx.x); }
BATON_DEVICE int BlockThreads() { return static_cast<int>(blockDim.x); }
BATON_DEVICE int BlockX() { return static_cast<int>(blockIdx.x); }
BATON_DEVICE int BlockY() { return static_cast<int>(blockIdx.y); }
BATON_DEVICE int BlockZ() { return static_cast<int>(blockIdx.z); }
BATON_DEVICE int GridX() { return static_cast<int>(gridDim.x); }
BATON_DEVICE int GridY() { return static_cast<int>(gridDim.y); }
BATON_DEVICE int Lane() { return static_cast<int>(threadIdx.x) % kWarpSize; }
BATON_DEVICE int Warp() { return static_cast<int>(threadIdx.x) / kWarpSize; }

// --- shared memory and barriers

template <typename T>
BATON_DEVICE T& SharedMemory() {
  extern __shared__ __align__(1024) unsigned char baton_shared_memory[];
  return *reinterpret_cast<T*>(baton_shared_memory);
}

BATON_DEVICE void SyncBlock() { __syncthreads(); }
BATON_DEVICE void SyncWarp() { __syncwarp(); }
BATON_DEVICE void SyncSome(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
BATON_DEVICE void Trap() { __trap(); }

namespace detail {
BATON_DEVICE uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
}  // namespace detail

// --- warp

template <typename T>
BATON_DEVICE T ShuffleXor(T value, int lane_mask) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  return __shfl_xor_sync(kAllLanes, value, lane_mask);
}
template <typename T>
BATON_DEVICE T ShuffleFrom(T value, int lane) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  return __shfl_sync(kAllLanes, value, lane);
}
template <typename T>
BATON_DEVICE T ShuffleUp(T value, int delta) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  return __shfl_up_sync(kAllLanes, value, static_cast<unsigned>(delta));
}
template <typename T>
BATON_DEVICE T ShuffleDown(T value, int delta) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  return __shfl_down_sync(kAllLanes, value, static_cast<unsigned>(delta));
}
BATON_DEVICE uint32_t Ballot(bool predicate) { return __ballot_sync(kAllLanes, predicate); }
BATON_DEVICE bool AnyLane(bool predicate) { return __any_sync(kAllLanes, predicate) != 0; }
BATON_DEVICE bool AllLanes(bool predicate) { return __all_sync(kAllLanes, predicate) != 0; }

// --- atomics

BATON_DEVICE int32_t AtomicAdd(int32_t* address, int32_t value) {
  return atomicAdd(address, value);
}
BATON_DEVICE uint32_t AtomicOr(uint32_t* address, uint32_t value) {
  return atomicOr(address, value);
}
BATON_DEVICE int32_t AtomicMax(int32_t* address, int32_t value) {
  return atomicMax(address, value);
}
BATON_DEVICE int32_t AtomicMin(int32_t* address, int32_t value) {
  return atomicMin(address, value);
}

// --- asynchronous copies

BATON_DEVICE void CopyAsync16(void* shared, const void* global, int valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(detail::SharedAddress(shared)),
               "l"(global), "r"(valid)
               : "memory");
}
BATON_DEVICE void CopyAsyncCommit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
BATON_DEVICE void CopyAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// --- transactions

BATON_DEVICE void InitTransaction(TransactionBarrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(detail::SharedAddress(barrier)),
               "r"(arrivals)
               : "memory");
  // The copy engine sees shared memory through another proxy.
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
BATON_DEVICE void ArriveExpecting(TransactionBarrier* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                   detail::SharedAddress(barrier)),
               "r"(bytes)
               : "memory");
}
BATON_DEVICE void Arrive(TransactionBarrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(detail::SharedAddress(barrier))
               : "memory");
}
BATON_DEVICE void AwaitTransaction(TransactionBarrier* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(detail::SharedAddress(barrier)),
      "r"(parity)
      : "memory");
}
BATON_DEVICE void CopyBulk(void* shared, const void* global, int bytes,
                           TransactionBarrier* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(detail::SharedAddress(shared)),
      "l"(global), "r"(bytes), "r"(detail::SharedAddress(barrier))
      : "memory");
}

BATON_DEVICE void CopyTensor(void* shared, const TensorMap* map, int column, int row, int layer,
                             TransactionBarrier* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(detail::SharedAddress(shared)),
      "l"(map), "r"(column), "r"(row), "r"(layer), "r"(detail::SharedAddress(barrier))
      : "memory");
}
BATON_DEVICE void PrefetchTensorMap(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
BATON_DEVICE void FenceAsyncProxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// --- matrix instructions

BATON_DEVICE void LoadMatrix4(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(detail::SharedAddress(row))
               : "memory");
}
BATON_DEVICE void LoadMatrix4Transposed(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(detail::SharedAddress(row))
               : "memory");
}
BATON_DEVICE void MmaBf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
BATON_DEVICE void MmaE4M3(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// --- numbers

BATON_DEVICE float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
BATON_DEVICE float Bf16ToFloat(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}
BATON_DEVICE uint16_t FloatToBf16(float value) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(value));
}
BATON_DEVICE float E4M3ToFloat(uint8_t code) {
  const __half_raw half = __nv_cvt_fp8_to_halfraw(code, __NV_E4M3);
  return __half2float(half);
}
BATON_DEVICE void E4M3ToBf16(uint32_t codes, uint32_t (&pairs)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const auto two = static_cast<__nv_fp8x2_storage_t>(codes >> (16 * i));
    const float2 wide = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(two, __NV_E4M3)));
    const __nv_bfloat162_raw narrow = __floats2bfloat162_rn(wide.x, wide.y);
    pairs[i] = static_cast<uint32_t>(narrow.x) | static_cast<uint32_t>(narrow.y) << 16;
  }
}
BATON_DEVICE uint8_t FloatToE4M3(float value) {
  return __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3);
}
BATON_DEVICE uint32_t PackBf16(float low, float high) {
  return static_cast<uint32_t>(FloatToBf16(low)) | (static_cast<uint32_t>(FloatToBf16(high)) << 16);
}

}  // namespace baton::kernels::cuda

#include "kernels/cuda/native/group_mma_inline.h"

#endif  // BATON_KERNELS_CUDA_NATIVE_DEVICE_INLINE_H_
