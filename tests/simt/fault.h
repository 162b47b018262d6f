#ifndef BATON_TESTS_SIMT_FAULT_H_
#define BATON_TESTS_SIMT_FAULT_H_

// What the emulation finds wrong with a kernel or with the use of the runtime.

#include <cstddef>
#include <cstdint>
#include <string>

namespace baton::simt {

enum class FaultKind : uint8_t {
  kOutOfBounds,    // global or shared memory that is no part of an allocation
  kHostMemory,     // a pointer to the host's memory, dereferenced by a kernel
  kMisaligned,     // an access that is not aligned to its size
  kUninitialized,  // read before anything was written
  kRace,           // two threads, one of which writes, without a barrier between
  kAsyncCopy,      // touched while an asynchronous copy to it is under way
  kProxy,          // written without FenceAsyncProxy, then used by the copy engine or a warpgroup
  kGroupMma,       // a warpgroup's matrix instruction: its operands, registers or warps
  kBarrier,        // threads of a block or warp meet at different barriers
  kDeadlock,       // nobody can go on
  kWarp,           // lanes call different warp operations together
  kTrap,           // Trap()
  kBadLaunch,      // a shape that no GPU takes
  kStreamOrder,    // memory used by a stream before the work that makes it was waited for
  kRuntime,        // the runtime's API, called in a way that is an error
  kCollective,     // NCCL calls of the ranks that do not fit
};
const char* FaultName(FaultKind kind);

struct Fault {
  FaultKind kind;
  std::string what;    // what happened
  std::string kernel;  // empty outside of kernels
  int block[3] = {0, 0, 0};
  int thread = -1;
  std::string where;  // file:line, innermost first

  // All of it, for people.
  std::string Text() const;
};

// file:line of the code in front of a return address, with the callers it was inlined into: "a.cu:5
// < b.cu:7". Slow the first time: asks addr2line.
std::string Locate(const void* return_address);
// The name of the function that begins at `function`.
std::string FunctionName(const void* function);

}  // namespace baton::simt

#endif  // BATON_TESTS_SIMT_FAULT_H_
