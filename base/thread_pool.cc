#include "base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <chrono>

#include "base/check.h"

namespace baton {
namespace {

std::vector<int> AllowedCpus() {
  std::vector<int> cpus;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
    }
  }
  if (cpus.empty()) cpus.push_back(0);
  return cpus;
}

// Best effort: a thread that cannot be pinned runs unpinned.
void PinThisThread(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  (void)sched_setaffinity(0, sizeof(set), &set);
}

void Relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Spins until `done()` or for `micros`; the clock is read once in 32 turns. Returns done().
template <typename Done>
bool SpinUntil(int micros, const Done& done) {
  const auto limit = std::chrono::steady_clock::now() + std::chrono::microseconds(micros);
  do {
    for (int i = 0; i < 32; ++i) {
      if (done()) return true;
      Relax();
    }
  } while (std::chrono::steady_clock::now() < limit);
  return done();
}

}  // namespace

int AllowedCpuCount() { return static_cast<int>(AllowedCpus().size()); }

ThreadPool::ThreadPool(const ThreadPoolOptions& options)
    : threads_(std::clamp(options.threads == 0 ? AllowedCpuCount() : options.threads, 1, 1024)),
      spin_micros_(std::max(0, options.spin_micros)),
      claimed_(static_cast<size_t>(threads_)) {
  const std::vector<int> cpus = AllowedCpus();
  workers_.reserve(static_cast<size_t>(threads_ - 1));
  for (int thread = 1; thread < threads_; ++thread) {
    const int cpu = options.pin ? cpus[static_cast<size_t>(thread) % cpus.size()] : -1;
    workers_.emplace_back([this, thread, cpu] {
      if (cpu >= 0) PinThisThread(cpu);
      Work(thread);
    });
  }
}

ThreadPool::~ThreadPool() {
  stopping_.store(true, std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

// A worker that is late, with the epoch of a call that has ended, claims nothing: all parts of that
// call were claimed, so each word holds its epoch or a later one.
bool ThreadPool::Claim(int part, uint32_t epoch) {
  std::atomic<uint32_t>& word = claimed_[static_cast<size_t>(part)];
  uint32_t last = word.load(std::memory_order_relaxed);
  if (static_cast<int32_t>(epoch - last) <= 0) return false;
  return word.compare_exchange_strong(last, epoch, std::memory_order_relaxed);
}

void ThreadPool::RunParts(int thread, uint32_t epoch) {
  for (int i = 0; i < threads_; ++i) {
    const int part = (thread + i) % threads_;
    if (!Claim(part, epoch)) continue;
    const int64_t begin = count_ * part / threads_;
    const int64_t end = count_ * (part + 1) / threads_;
    if (begin < end) (*body_)(begin, end, thread);
    if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1 && thread != 0) pending_.notify_one();
  }
}

void ThreadPool::ParallelFor(int64_t count, Body body) {
  if (count <= 0) return;
  BATON_CHECK(!busy_.exchange(true, std::memory_order_acquire));
  if (threads_ == 1 || count == 1) {
    body(0, count, 0);
    busy_.store(false, std::memory_order_release);
    return;
  }
  count_ = count;
  body_ = &body;
  pending_.store(threads_, std::memory_order_relaxed);
  const uint32_t epoch = epoch_.fetch_add(1, std::memory_order_release) + 1;
  epoch_.notify_all();  // costs one load when nobody sleeps
  RunParts(0, epoch);
  const auto idle = [this] { return pending_.load(std::memory_order_acquire) == 0; };
  while (!SpinUntil(spin_micros_, idle)) {
    const int32_t left = pending_.load(std::memory_order_acquire);
    if (left != 0) pending_.wait(left, std::memory_order_acquire);
  }
  body_ = nullptr;
  busy_.store(false, std::memory_order_release);
}

void ThreadPool::Work(int thread) {
  uint32_t seen = 0;
  while (true) {
    const auto called = [this, &seen] { return epoch_.load(std::memory_order_acquire) != seen; };
    while (!SpinUntil(spin_micros_, called)) epoch_.wait(seen, std::memory_order_acquire);
    seen = epoch_.load(std::memory_order_acquire);
    if (stopping_.load(std::memory_order_relaxed)) return;
    RunParts(thread, seen);
  }
}

}  // namespace baton
