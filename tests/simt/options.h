#ifndef BATON_TESTS_SIMT_OPTIONS_H_
#define BATON_TESTS_SIMT_OPTIONS_H_

// How the emulation runs, and what it has found.

#include <array>
#include <cstdint>
#include <optional>

#include "tests/simt/fault.h"

namespace baton::simt {

// What the emulated cuBLASLt does: as the real one may, or what must be noticed.
enum class CublasLt : uint8_t {
  kFixed,       // one algorithm gives the same bits at every size
  kVaries,      // it does not
  kOnlySplits,  // no algorithm without a split of K
};

struct Options {
  // Of the order of threads, blocks, streams and asynchronous copies.
  uint64_t seed = 1;
  // Bounds, initialization, alignment, host memory: about half of the time a kernel takes here.
  bool check_memory = true;
  // Races between threads of a grid and between streams: many times slower.
  bool check_races = false;
  // OS threads that blocks are spread over.
  int workers = 2;
  // What the emulated devices are. Of a program that sets no options SIMT_DEVICES in the
  // environment says how many there are.
  int devices = 2;
  int compute_major = 9;
  int compute_minor = 0;
  // What cudaDriverGetVersion says: 0 without a driver; -1: the version that the headers are of.
  int driver_version = -1;
  CublasLt cublaslt = CublasLt::kFixed;
  // By device, how many operations of NCCL find room on it at a time; those beyond wait for one of
  // these to end, in any order. 0: all do.
  std::array<int, 8> nccl_room = {};
  // What ncclGetVersion says: NCCL 2.28.9, or SIMT_NCCL as above. Calls of later releases exist if
  // this is one.
  int nccl_version = 22809;
  // Whether communicators can have windows.
  bool nccl_windows = true;
  // The ranks of every communicator are on hosts of their own, for its one-sided calls.
  bool nccl_apart = false;
  // Bytes of memory of a device.
  size_t device_bytes = size_t{2} << 30;
  // Whether they say that they can reach each other's memory.
  bool peer_access = true;
};

// For what is launched from now on; no kernel may be running.
void SetOptions(const Options& options);
Options GetOptions();

// The first fault since the last call, which also makes the devices usable again. Waits for what is
// running. Without a call the process prints a fault and the runtime answers
// cudaErrorLaunchFailure from then on.
std::optional<Fault> TakeFault();

// How often the host has given a stream something to do so far: launches, copies, graphs, NCCL's
// calls. What a graph holds counts as one.
uint64_t LaunchCount();

// Bytes of a device's memory that are taken.
size_t AllocatedBytes(int device);

// How many boxes of tensors kernels have copied so far.
uint64_t BoxCount();

// Sets options for its lifetime.
class ScopedOptions {
 public:
  explicit ScopedOptions(const Options& options) : before_(GetOptions()) { SetOptions(options); }
  ~ScopedOptions() { SetOptions(before_); }
  ScopedOptions(const ScopedOptions&) = delete;
  ScopedOptions& operator=(const ScopedOptions&) = delete;

 private:
  const Options before_;
};

}  // namespace baton::simt

#endif  // BATON_TESTS_SIMT_OPTIONS_H_
