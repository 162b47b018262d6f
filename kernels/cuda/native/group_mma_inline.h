#ifndef BATON_KERNELS_CUDA_NATIVE_GROUP_MMA_INLINE_H_
#define BATON_KERNELS_CUDA_NATIVE_GROUP_MMA_INLINE_H_

// nvcc's side of device.h: the matrix instructions of warpgroups (PTX ISA 8.5, wgmma). Included by
// device_inline.h alone. Only what is compiled for sm_90a alone may call them.

#include <type_traits>

namespace baton::kernels::cuda {
namespace detail {

// A matrix descriptor: address, leading and stride byte offsets in units of 16 bytes, and the mode
// "128-byte swizzle". Rows stand in groups of eight, 1024 bytes apart.
BATON_DEVICE uint64_t SwizzledMatrix(uint32_t address, uint32_t leading_bytes) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  constexpr uint64_t kStride = uint64_t{1024 / 16} << 32;
  return kSwizzle128 | kStride | static_cast<uint64_t>(leading_bytes / 16) << 16 |
         (address & 0x3FFFFu) / 16;
}

// Keeps the compiler from computing a register on the other side.
BATON_DEVICE void Pin(float& value) { asm volatile("" : "+f"(value)::"memory"); }
BATON_DEVICE void Pin(uint32_t& value) { asm volatile("" : "+r"(value)::"memory"); }
template <typename T, int kCount>
BATON_DEVICE void Pin(T (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) Pin(values[i]);
}

template <int kN>
struct Wgmma;

// Operands d[i] .. of an asm statement, and their names in it.
#define BATON_D8(i)                                                                           \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define BATON_D32(i) BATON_D8(i), BATON_D8(i + 8), BATON_D8(i + 16), BATON_D8(i + 24)
#define BATON_NAMES8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define BATON_NAMES32                                                                     \
  BATON_NAMES8                                                                            \
  ", %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, " \
  "%25, %26, %27, %28, %29, %30, %31"
#define BATON_NAMES64                                                                       \
  BATON_NAMES32                                                                             \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, " \
  "%49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define BATON_NAMES128                                                                      \
  BATON_NAMES64                                                                             \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, " \
  "%81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, "   \
  "%98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "      \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, "    \
  "%126, %127"

// For n columns, whose `names` name `operands`; operand numbers behind them as text.
#define BATON_WGMMA(n, names, operands, n0, n1, n2, n3, n4, n5)                                   \
  template <>                                                                                     \
  struct Wgmma<n> {                                                                               \
    static BATON_DEVICE void Bf16Rows(float (&d)[n / 2], uint64_t a, uint64_t b, int add) {       \
      asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" n2                                    \
                   ", 0;\n"                                                                       \
                   "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" names "}, %" n0   \
                   ", %" n1 ", add, 1, 1, 0, 0;\n}"                                               \
                   : operands                                                                     \
                   : "l"(a), "l"(b), "r"(add));                                                   \
    }                                                                                             \
    static BATON_DEVICE void Bf16Registers(float (&d)[n / 2], const uint32_t (&a)[4], uint64_t b, \
                                           int add) {                                             \
      asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" n5                                    \
                   ", 0;\n"                                                                       \
                   "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" names "}, {%" n0  \
                   ", %" n1 ", %" n2 ", %" n3 "}, %" n4 ", add, 1, 1, 0;\n}"                      \
                   : operands                                                                     \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));               \
    }                                                                                             \
    static BATON_DEVICE void Bf16Columns(float (&d)[n / 2], const uint32_t (&a)[4], uint64_t b,   \
                                         int add) {                                               \
      asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" n5                                    \
                   ", 0;\n"                                                                       \
                   "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" names "}, {%" n0  \
                   ", %" n1 ", %" n2 ", %" n3 "}, %" n4 ", add, 1, 1, 1;\n}"                      \
                   : operands                                                                     \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));               \
    }                                                                                             \
    static BATON_DEVICE void E4M3Rows(float (&d)[n / 2], uint64_t a, uint64_t b, int add) {       \
      asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" n2                                    \
                   ", 0;\n"                                                                       \
                   "wgmma.mma_async.sync.aligned.m64n" #n "k32.f32.e4m3.e4m3 {" names "}, %" n0   \
                   ", %" n1 ", add, 1, 1;\n}"                                                     \
                   : operands                                                                     \
                   : "l"(a), "l"(b), "r"(add));                                                   \
    }                                                                                             \
  };
#define BATON_OPERANDS128 BATON_D32(0), BATON_D32(32), BATON_D32(64), BATON_D32(96)
BATON_WGMMA(16, BATON_NAMES8, BATON_D8(0), "8", "9", "10", "11", "12", "13")
BATON_WGMMA(64, BATON_NAMES32, BATON_D32(0), "32", "33", "34", "35", "36", "37")
#define BATON_OPERANDS64 BATON_D32(0), BATON_D32(32)
BATON_WGMMA(128, BATON_NAMES64, BATON_OPERANDS64, "64", "65", "66", "67", "68", "69")
BATON_WGMMA(256, BATON_NAMES128, BATON_OPERANDS128, "128", "129", "130", "131", "132", "133")
#undef BATON_WGMMA
#undef BATON_OPERANDS64
#undef BATON_OPERANDS128
#undef BATON_NAMES128
#undef BATON_NAMES64
#undef BATON_NAMES32
#undef BATON_NAMES8
#undef BATON_D32
#undef BATON_D8

}  // namespace detail

BATON_DEVICE OperandByRows RowsAt(const void* rows, int byte) {
  return {detail::SwizzledMatrix(detail::SharedAddress(rows) + static_cast<uint32_t>(byte), 16)};
}
BATON_DEVICE OperandByColumns ColumnsAt(const void* rows, int bytes) {
  return {detail::SwizzledMatrix(detail::SharedAddress(rows), static_cast<uint32_t>(bytes))};
}
template <int kN>
BATON_DEVICE void GroupMmaBf16(float (&d)[kN / 2], OperandByRows a, OperandByRows b, bool add) {
  detail::Wgmma<kN>::Bf16Rows(d, a.bits, b.bits, add);
}
template <int kN>
BATON_DEVICE void GroupMmaBf16(float (&d)[kN / 2], const uint32_t (&a)[4], OperandByRows b,
                               bool add) {
  detail::Wgmma<kN>::Bf16Registers(d, a, b.bits, add);
}
template <int kN>
BATON_DEVICE void GroupMmaBf16(float (&d)[kN / 2], const uint32_t (&a)[4], OperandByColumns b,
                               bool add) {
  detail::Wgmma<kN>::Bf16Columns(d, a, b.bits, add);
}
template <int kN>
BATON_DEVICE void GroupMmaE4M3(float (&d)[kN / 2], OperandByRows a, OperandByRows b, bool add) {
  detail::Wgmma<kN>::E4M3Rows(d, a.bits, b.bits, add);
}
template <typename... Registers>
BATON_DEVICE void GroupMmaFence(Registers&... registers) {
  (detail::Pin(registers), ...);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
BATON_DEVICE void GroupMmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending, typename... Registers>
BATON_DEVICE void GroupMmaWait(Registers&... registers) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  (detail::Pin(registers), ...);
}

template <int kCount>
BATON_DEVICE void GiveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
BATON_DEVICE void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_NATIVE_GROUP_MMA_INLINE_H_
