// Compiles one file once for each instruction set. Deliberately without an include guard.
//
//   #define BATON_ISA_FILE "kernels/cpu/linear_isa.h"
//   #include "kernels/cpu/foreach_isa.h"
//
// The file is included with BATON_ISA (the namespace to open inside baton::kernels::cpu) and
// BATON_ISA_LEVEL (the value of IsaLevel) defined, under the target options of that level, so
// everything it defines, lambdas and templates too, may use that level's instructions and nothing
// else in the program does. Headers that are not meant for this must be included before, so that
// their inline functions keep the baseline's instructions.

#define BATON_ISA portable
#define BATON_ISA_LEVEL 0
#include BATON_ISA_FILE
#undef BATON_ISA
#undef BATON_ISA_LEVEL

#if defined(__x86_64__)

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,popcnt,bmi,bmi2")
#define BATON_ISA avx2
#define BATON_ISA_LEVEL 1
#include BATON_ISA_FILE
#undef BATON_ISA
#undef BATON_ISA_LEVEL
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target( \
    "avx2,fma,f16c,popcnt,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#define BATON_ISA avx512
#define BATON_ISA_LEVEL 2
#include BATON_ISA_FILE
#undef BATON_ISA
#undef BATON_ISA_LEVEL
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target( \
    "avx2,fma,f16c,popcnt,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi,prefer-vector-width=512")
#define BATON_ISA avx512_bf16
#define BATON_ISA_LEVEL 3
#include BATON_ISA_FILE
#undef BATON_ISA
#undef BATON_ISA_LEVEL
#pragma GCC pop_options

// Calls `call` in the namespace of the level: BATON_ISA_CALL(device.isa(), Linear(device, args)).
#define BATON_ISA_CALL(isa, call) \
  switch (isa) {                  \
    case IsaLevel::kAvx512Bf16:   \
      return avx512_bf16::call;   \
    case IsaLevel::kAvx512:       \
      return avx512::call;        \
    case IsaLevel::kAvx2:         \
      return avx2::call;          \
    case IsaLevel::kPortable:     \
      break;                      \
  }                               \
  return portable::call

#else

#define BATON_ISA_CALL(isa, call) \
  static_cast<void>(isa);         \
  return portable::call

#endif

#undef BATON_ISA_FILE
