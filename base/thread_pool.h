#ifndef BATON_BASE_THREAD_POOL_H_
#define BATON_BASE_THREAD_POOL_H_

// Persistent threads for data-parallel loops of microseconds to milliseconds. A loop is cut into
// `threads()` equal contiguous parts. Thread i takes part i first, so equal calls touch equal
// memory from equal threads; a thread that is done takes the parts that nobody has begun. A call
// therefore waits only for threads that are at work, never for one that still has to be woken or
// that the system does not run: on a busy machine more threads are not slower than one. The caller
// works as thread 0; with one thread there are no others and ParallelFor is a plain loop. Between
// calls a worker spins for a bounded time (tens of microseconds), then sleeps in the kernel until
// the next call.
//
// Threads: one ParallelFor at a time, from any thread (checked). The function must not throw nor
// call ParallelFor of the same pool.

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace baton {

struct ThreadPoolOptions {
  int threads = 0;  // 0: one for each CPU this process may run on; clamped to 1..1024
  bool pin =
      false;  // pin worker i (and nothing else: the caller stays free) to the i-th allowed CPU
  int spin_micros = 30;  // how long an idle worker, and a caller that waits for the last worker,
                         // spins before it sleeps
};

class ThreadPool {
 public:
  explicit ThreadPool(const ThreadPoolOptions& options);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // fn(begin, end, thread) for non-empty disjoint ranges that cover [0, count); thread in [0,
  // threads()), which may get several ranges, one after the other. Returns when all are done; what
  // they wrote is visible to the caller.
  using Body = absl::FunctionRef<void(int64_t begin, int64_t end, int thread)>;
  void ParallelFor(int64_t count, Body body);

 private:
  void Work(int thread);
  bool Claim(int part, uint32_t epoch);
  void RunParts(int thread, uint32_t epoch);

  const int threads_;
  const int spin_micros_;

  // The current call; written by the caller before it publishes a new epoch, read by the threads
  // that claimed a part of it: while one is claimed and not done, the call cannot end.
  int64_t count_ = 0;
  const Body* body_ = nullptr;

  alignas(64) std::atomic<uint32_t> epoch_{0};   // one step per call; workers wait on it
  alignas(64) std::atomic<int32_t> pending_{0};  // parts not yet done; the caller waits on it
  alignas(64) std::atomic<bool> stopping_{false};
  std::atomic<bool> busy_{false};
  std::vector<std::atomic<uint32_t>> claimed_;  // [threads()] the last epoch whose part was claimed
  std::vector<std::thread> workers_;
};

// CPUs this process may run on, at least 1.
int AllowedCpuCount();

}  // namespace baton

#endif  // BATON_BASE_THREAD_POOL_H_
