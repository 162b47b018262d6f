#ifndef BATON_TESTS_SIMT_NCCL_WINDOW_H_
#define BATON_TESTS_SIMT_NCCL_WINDOW_H_

// One-sided communication of the emulated NCCL: memory that other ranks, threads or processes, map
// and write to, with signals that count what was written. A mapping keeps the memory: what a rank
// has given up and freed can still be written to by its peers, and nobody else gets it before.

#include <nccl.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace baton::simt {

class NcclComm;

// Puts of this device that have begun stop half-way, as if its copy engines stood; -1: of none.
void HoldPuts(int device);
int HeldPuts();

// Memory that processes share. Thread-safe.
class SharedMemory {
 public:
  // Null when there is none, or `fd`, which is taken, has not so much.
  static std::shared_ptr<SharedMemory> Create(size_t bytes);
  static std::shared_ptr<SharedMemory> Map(int fd, size_t bytes);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  char* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  int fd() const { return fd_; }

 private:
  SharedMemory(char* data, size_t bytes, int fd) : data_(data), bytes_(bytes), fd_(fd) {}
  char* const data_;
  const size_t bytes_;
  const int fd_;
};

// Memory of a device that can be a window: in the emulated range, and shared.
class WindowMemory {
 public:
  // Null when the device has no room.
  static void* Allocate(size_t bytes, int device);
  // False for what Allocate has not given.
  static bool Free(void* data);
  // The block that begins at `data`; null where there is none.
  static std::shared_ptr<SharedMemory> Find(const void* data);
};

}  // namespace baton::simt

// A window of a communicator: the rank's own part, and its peers'.
struct ncclWindow_vidmem {
  uint64_t number = 0;  // of the communicator's windows
  char* own = nullptr;
  size_t bytes = 0;
  std::vector<std::shared_ptr<baton::simt::SharedMemory>> parts;  // by rank
};

namespace baton::simt {

// What a communicator has of it. Calls that all ranks make are made by one thread at a time; puts
// and waits run on the device's thread.
class NcclOneSided {
 public:
  explicit NcclOneSided(NcclComm* comm) : comm_(comm) {}

  // With all ranks: null when one is lost, or the communicator aborted.
  ncclWindow_t Register(void* memory, size_t bytes, int flags);
  // With all ranks, before the first signal, put or wait; false as above.
  bool EnsureSignals();
  bool has_signals() const { return has_signals_; }

  // The window of this communicator that holds the range; null: none.
  ncclWindow_t Holding(const void* data, size_t bytes) const;
  bool Owns(ncclWindow_t window) const;

  // On the device's thread. A signal to `peer` behind `bytes` at `offset` of a window (null: none).
  void Signal(int peer, ncclWindow_t window, size_t offset, size_t bytes);
  // Of `peer` so far.
  uint64_t SignalsOf(int peer) const;
  // What was put up to that signal is there, for operation `op`.
  void Accept(uint32_t op, int peer, uint64_t signals);

  // How many signals of each rank waits were made for; of the calling thread.
  std::vector<uint64_t> awaited;

 private:
  // One rank's signals to another.
  struct Lane {
    static constexpr uint64_t kLog = 256;
    struct Put {
      uint64_t window = 0, offset = 0, bytes = 0;
    };
    std::atomic<uint64_t> signals{0};
    std::atomic<uint64_t> accepted{0};
    Put log[kLog];  // the latest
  };
  Lane& LaneOf(int at, int from) const;

  NcclComm* const comm_;
  std::atomic<bool> has_signals_{false};
  std::vector<std::unique_ptr<ncclWindow_vidmem>> windows_;
  std::vector<std::shared_ptr<SharedMemory>> signals_;  // by rank; each a Lane for each rank
};

}  // namespace baton::simt

#endif  // BATON_TESTS_SIMT_NCCL_WINDOW_H_
