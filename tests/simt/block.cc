#include "tests/simt/block.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <sstream>
#include <utility>

#include "base/check.h"
#include "tests/simt/memory.h"

namespace baton::simt {
namespace {

constexpr size_t kGuardBytes = 4096;

thread_local BlockRunner* current_runner = nullptr;

// A fiber's memory, which outlives the fiber: one that met a fault is never resumed nor unwound.
class KeptStack {
 public:
  KeptStack(char* low, size_t bytes) : low_(low), bytes_(bytes) {}
  boost::context::stack_context allocate() {
    boost::context::stack_context out;
    out.sp = low_ + bytes_;
    out.size = bytes_;
    return out;
  }
  void deallocate(boost::context::stack_context&) {}

 private:
  char* low_;
  size_t bytes_;
};

char* NewStack(size_t bytes) {
  void* data = mmap(nullptr, kGuardBytes + bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  BATON_CHECK_MSG(data != MAP_FAILED, "no memory for the stack of a fiber");
  BATON_CHECK_EQ(mprotect(data, kGuardBytes, PROT_NONE), 0);
  return static_cast<char*>(data) + kGuardBytes;
}

}  // namespace

BlockRunner* BlockRunner::Current() { return current_runner; }

BlockRunner::BlockRunner()
    : shared_(static_cast<char*>(
          Memory::Get().Allocate(kMaxSharedBytes, MemoryKind::kShared, /*device=*/-1))),
      shared_races_(reinterpret_cast<size_t>(shared_), kMaxSharedBytes) {
  BATON_CHECK(shared_ != nullptr);
  Memory::Get().Mark(shared_, kMaxSharedBytes, 0);
  units_.resize(kMaxSharedBytes / 16);
  writers_.resize(kMaxSharedBytes);
}

BlockRunner::~BlockRunner() {
  for (const auto& thread : threads_) {
    if (thread->in_kernel) new boost::context::fiber(std::move(thread->fiber));  // see Run
    thread->fiber = {};
    munmap(thread->stack - kGuardBytes, kGuardBytes + kStackBytes);
  }
  Memory::Get().Free(shared_);
}

void BlockRunner::Prepare(int count) {
  while (static_cast<int>(threads_.size()) < count) {
    threads_.push_back(std::make_unique<Thread>());
    threads_.back()->stack = NewStack(kStackBytes);
  }
  for (int i = 0; i < count; ++i) {
    Thread& thread = *threads_[static_cast<size_t>(i)];
    if (thread.in_kernel) {
      // It was left where a fault stopped the block. To unwind it would run the kernel's frames,
      // which know no exceptions; the stack is used again, the handle is given up.
      new boost::context::fiber(std::move(thread.fiber));
      thread.in_kernel = false;
    }
    if (thread.fiber) continue;
    thread.fiber = boost::context::fiber(std::allocator_arg, KeptStack(thread.stack, kStackBytes),
                                         [this, &thread](boost::context::fiber&& scheduler) {
                                           thread.scheduler = std::move(scheduler);
                                           while (true) {
                                             thread.in_kernel = true;
                                             grid_->invoke(grid_->kernel, grid_->args.data());
                                             thread.in_kernel = false;
                                             thread.state = State::kDone;
                                             thread.scheduler =
                                                 std::move(thread.scheduler).resume();
                                           }
                                           return std::move(thread.scheduler);  // not reached
                                         });
  }
}

void BlockRunner::Reset(const Grid& grid, int64_t block) {
  block_ = static_cast<uint32_t>(block);
  rng_ = Rng(grid.seed + static_cast<uint64_t>(block) * 0x9E3779B97F4A7C15ull);
  const Memory& memory = Memory::Get();
  memory.Mark(shared_, shared_used_, 0);
  std::fill_n(units_.begin(), (shared_used_ + 15) / 16, SharedUnit{});
  std::fill_n(writers_.begin(), shared_used_, 0);
  shared_used_ = grid.shared_bytes;
  memory.Mark(shared_, shared_used_, kAddressable);
  for (Barrier& barrier : barriers_) barrier = {};
  warps_.assign(static_cast<size_t>(grid.threads / 32), {});
  transactions_.clear();
  bulk_copies_.clear();
  if (grid.races != nullptr) shared_races_.Clear();
  ready_.clear();
  engine_clock_ = 0;
  left_ = grid.threads;
  for (int i = 0; i < grid.threads; ++i) {
    Thread& thread = *threads_[static_cast<size_t>(i)];
    const int64_t x = grid.blocks[0], y = grid.blocks[1];
    thread.place = {i,
                    grid.threads,
                    {static_cast<int>(block % x), static_cast<int>(block / x % y),
                     static_cast<int>(block / (x * y))},
                    {grid.blocks[0], grid.blocks[1], grid.blocks[2]}};
    thread.state = State::kReady;
    thread.open_copies.clear();
    thread.copy_groups.clear();
    thread.proxy_fences = 0;
    thread.touched.clear();
    thread.busy.clear();
    thread.clock.clear();
    if (grid.races != nullptr) {
      thread.clock.assign(static_cast<size_t>(grid.threads) + 1, 0);  // the last: the copy engine
      thread.clock[static_cast<size_t>(i)] = 1;
    }
    ready_.push_back(i);
  }
}

void BlockRunner::Run(Grid& grid, int64_t block) {
  grid_ = &grid;
  Prepare(grid.threads);
  Reset(grid, block);
  current_runner = this;
  Schedule();
  current_runner = nullptr;
}

void BlockRunner::Schedule() {
  while (left_ > 0 && !grid_->stop) {
    const bool lands = !bulk_copies_.empty() && (ready_.empty() || rng_.Chance(0.125));
    if (lands) {
      LandBulk(rng_.Below(bulk_copies_.size()));
      continue;
    }
    if (ready_.empty()) return ReportDeadlock();
    const size_t at = rng_.Below(ready_.size());
    const size_t chosen = static_cast<size_t>(ready_[at]);
    ready_[at] = ready_.back();
    ready_.pop_back();
    Thread& thread = *threads_[chosen];
    Resume(thread);
    if (thread.state != State::kDone || thread.in_kernel) continue;
    --left_;
    for (std::vector<Copy>& group : thread.copy_groups) {
      for (Copy& copy : group) FinishCopy(copy);
    }
    for (Copy& copy : thread.open_copies) FinishCopy(copy);
  }
  if (!grid_->stop && !EndedTogether()) grid_->stop = true;
}

void BlockRunner::Resume(Thread& thread) {
  thread_ = &thread;
  thread.fiber = std::move(thread.fiber).resume();
  thread_ = nullptr;
}

void BlockRunner::Yield() {
  Thread& self = *thread_;
  self.scheduler = std::move(self.scheduler).resume();
}

void BlockRunner::Wait(const char* where, const void* site) {
  thread_->state = State::kWaiting;
  thread_->waits_at = where;
  thread_->site = site;
  Yield();
}

void BlockRunner::MakeReady(int thread) {
  threads_[static_cast<size_t>(thread)]->state = State::kReady;
  ready_.push_back(thread);
}

void BlockRunner::ReportDeadlock() {
  std::map<std::string, std::pair<int, int>> groups;  // place -> a thread, how many
  const Thread* waiting = nullptr;
  for (int i = 0; i < grid_->threads; ++i) {
    const Thread& thread = *threads_[static_cast<size_t>(i)];
    if (thread.state != State::kWaiting) continue;
    if (waiting == nullptr) waiting = &thread;
    auto& group =
        groups.try_emplace(std::string(thread.waits_at) + " at " + Locate(thread.site), i, 0)
            .first->second;
    ++group.second;
  }
  std::ostringstream what;
  what << "nobody can go on; " << grid_->threads - left_ << " of " << grid_->threads
       << " threads have returned";
  for (const auto& [place, group] : groups) {
    what << "; " << group.second << " (thread " << group.first << " and others) wait in " << place;
  }
  Fault fault{.kind = FaultKind::kDeadlock,
              .what = what.str(),
              .kernel = FunctionName(grid_->kernel),
              .where = Locate(waiting->site)};
  std::copy(waiting->place.block, waiting->place.block + 3, fault.block);
  fault.thread = waiting->place.thread;
  grid_->stop = true;
  ReportFault(fault);
}

void BlockRunner::Fail(FaultKind kind, const std::string& what, const void* site) {
  Fault fault{
      .kind = kind, .what = what, .kernel = FunctionName(grid_->kernel), .where = Locate(site)};
  std::copy(thread_->place.block, thread_->place.block + 3, fault.block);
  fault.thread = thread_->place.thread;
  grid_->stop = true;
  ReportFault(fault);
  while (true) Yield();  // never resumed
}

// --- barriers

void BlockRunner::Tick(int thread) {
  ++threads_[static_cast<size_t>(thread)]->clock[static_cast<size_t>(thread)];
}

void BlockRunner::JoinClocks(const std::vector<int>& threads) {
  if (grid_->races == nullptr) return;
  VectorClock all(threads_[0]->clock.size(), 0);
  for (const int thread : threads) Join(all, threads_[static_cast<size_t>(thread)]->clock);
  for (const int thread : threads) {
    threads_[static_cast<size_t>(thread)]->clock = all;
    Tick(thread);
  }
}

// The compiler may have copied a piece of the kernel; it is still one place.
bool BlockRunner::SamePlace(const void* a, const void* b) const {
  return a == b || Locate(a) == Locate(b);
}

void BlockRunner::SyncBlock(int barrier, int threads, const void* site) {
  if (barrier < 0 || barrier > 15 || threads < 32 || threads % 32 != 0 ||
      threads > grid_->threads) {
    std::ostringstream what;
    what << "barrier " << barrier << " of " << threads << " threads in a block of "
         << grid_->threads;
    Fail(FaultKind::kBarrier, what.str(), site);
  }
  Barrier& b = barriers_[barrier];
  if (b.arrived.empty()) {
    b.expected = threads;
    b.site = site;
  } else if (b.expected != threads || !SamePlace(b.site, site)) {
    std::ostringstream what;
    what << "thread " << b.arrived.front() << " is at barrier " << barrier << " of " << b.expected
         << " threads at " << Locate(b.site) << ", this one at barrier " << barrier << " of "
         << threads;
    Fail(FaultKind::kBarrier, what.str(), site);
  }
  b.arrived.push_back(thread_->place.thread);
  if (static_cast<int>(b.arrived.size()) < b.expected) return Wait("a barrier", site);
  JoinClocks(b.arrived);
  for (const int thread : b.arrived) MakeReady(thread);
  b.arrived.clear();
  Yield();  // anyone may be the first to go on
}

BlockRunner::LaneCall& BlockRunner::MeetInWarp(int op, const char* name, const LaneCall& call,
                                               const void* site) {
  const int first = thread_->place.thread / 32 * 32;
  WarpState& warp = warps_[static_cast<size_t>(first / 32)];
  LaneCall& mine = warp.lanes[thread_->place.thread - first];
  if (warp.arrived == 0) {
    warp.op = op;
    warp.site = site;
  } else if (warp.op != op || !SamePlace(warp.site, site)) {
    Fail(FaultKind::kWarp,
         std::string("other lanes of the warp wait at ") + Locate(warp.site) + ", this one is in " +
             name,
         site);
  }
  mine = call;
  if (++warp.arrived < 32) {
    Wait(name, site);
    return mine;
  }
  warp.arrived = 0;
  if (op > kSync) {
    PerformGroup(op, warp, site);
  } else {
    Perform(op, warp.lanes);
  }
  if (op == kSync && grid_->races != nullptr) {
    std::vector<int> lanes(32);
    for (int i = 0; i < 32; ++i) lanes[static_cast<size_t>(i)] = first + i;
    JoinClocks(lanes);
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (first + lane != thread_->place.thread) MakeReady(first + lane);
  }
  return mine;
}

void BlockRunner::SyncWarp(const void* site) { MeetInWarp(kSync, "SyncWarp", {}, site); }

uint64_t BlockRunner::Shuffle(uint64_t value, int source, const void* site) {
  return MeetInWarp(static_cast<int>(WarpOp::kShuffle), "a shuffle",
                    {.in = value, .source = source}, site)
      .out;
}

uint32_t BlockRunner::Ballot(bool predicate, const void* site) {
  return static_cast<uint32_t>(MeetInWarp(static_cast<int>(WarpOp::kBallot), "a vote",
                                          {.in = predicate ? uint64_t{1} : 0}, site)
                                   .out);
}

void BlockRunner::LoadMatrix(uint32_t* out, const void* row, bool transposed, const void* site) {
  const char* const at = static_cast<const char*>(row);
  if (at < shared_ || at >= shared_ + kMaxSharedBytes) {
    Fail(FaultKind::kOutOfBounds, "LoadMatrix of memory that is not the block's shared memory",
         site);
  }
  Access(row, 16, /*write=*/false, /*may_be_unaligned=*/false, site);
  MeetInWarp(static_cast<int>(transposed ? WarpOp::kLoadMatrixTransposed : WarpOp::kLoadMatrix),
             "LoadMatrix", {.words = out, .row = row}, site);
}

void BlockRunner::Mma(WarpOp op, float* d, const uint32_t* a, const uint32_t* b, const void* site) {
  MeetInWarp(static_cast<int>(op), "a matrix instruction", {.d = d, .a = a, .b = b}, site);
}

}  // namespace baton::simt
