#ifndef BATON_TESTS_SIMT_BLOCK_H_
#define BATON_TESTS_SIMT_BLOCK_H_

// Runs one block of a grid: each thread is a fiber, and whenever one must wait (a barrier, a warp
// operation, a transaction) another that can go on is drawn. All of a block's fibers run on one OS
// thread, so nothing in here needs a lock.

#include <atomic>
#include <boost/context/fiber.hpp>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "tests/simt/fault.h"
#include "tests/simt/launch.h"
#include "tests/simt/race.h"

namespace baton::simt {

using calls::AtomicOp;
using calls::GroupMma;
using calls::Invoke;
using calls::Registers;
using calls::ThreadPlace;
using calls::WarpOp;

// One launch.
struct Grid {
  const void* kernel = nullptr;
  Invoke invoke = nullptr;
  std::vector<std::byte> args;
  int blocks[3] = {1, 1, 1};
  int threads = 0;
  size_t shared_bytes = 0;
  // How it runs.
  uint64_t seed = 0;
  bool check_memory = true;
  RaceMap* races = nullptr;  // null: not checked
  uint32_t op = 0;           // for the order of streams (stream.h)
  std::atomic<bool> stop{false};
};

class BlockRunner {
 public:
  BlockRunner();
  ~BlockRunner();
  BlockRunner(const BlockRunner&) = delete;
  BlockRunner& operator=(const BlockRunner&) = delete;

  // The block of this number, x fastest. Stops early where `grid.stop` is set, which it does itself
  // when it meets a fault (reported by ReportFault).
  void Run(Grid& grid, int64_t block);

  // --- called by the block's threads, through launch.cc. `site`: a return address in the kernel
  static BlockRunner* Current();
  const ThreadPlace& place() const { return thread_->place; }
  void* SharedBytes(size_t bytes, const void* site);
  void Access(const void* address, int bytes, bool write, bool may_be_unaligned, const void* site);
  void SyncBlock(int barrier, int threads, const void* site);
  void SyncWarp(const void* site);
  [[noreturn]] void Fail(FaultKind kind, const std::string& what, const void* site);
  uint64_t Shuffle(uint64_t value, int source, const void* site);
  uint32_t Ballot(bool predicate, const void* site);
  void LoadMatrix(uint32_t* out, const void* row, bool transposed, const void* site);
  void Mma(WarpOp op, float* d, const uint32_t* a, const uint32_t* b, const void* site);
  uint32_t Atomic(AtomicOp op, void* address, uint32_t value, const void* site);
  void CopyAsync(void* shared, const void* global, int valid, const void* site);
  void CopyAsyncCommit();
  void CopyAsyncWait(int pending, const void* site);
  void InitTransaction(void* barrier, int arrivals, const void* site);
  void ArriveTransaction(void* barrier, int bytes, const void* site);
  void AwaitTransaction(void* barrier, int parity, const void* site);
  void CopyBulk(void* shared, const void* global, int bytes, void* barrier, const void* site);
  void CopyTensor(void* shared, const void* map, const int (&at)[3], void* barrier,
                  const void* site);
  void PrefetchTensorMap(const void* map, const void* site);
  void FenceAsyncProxy() { ++thread_->proxy_fences; }
  uint32_t SharedAddress(const void* pointer, const void* site);
  void IssueGroupMma(const GroupMma& mma, const void* site);
  void GroupMmaFence(const Registers* named, int count, const void* site);
  void GroupMmaCommit(const void* site);
  void GroupMmaWait(int pending, const Registers* named, int count, const void* site);
  void SetRegisters(int count, const void* site);

 private:
  static constexpr size_t kMaxSharedBytes = 227 * 1024;
  static constexpr size_t kStackBytes = size_t{96} << 10;  // of a fiber
  // Beside the WarpOps.
  static constexpr int kSync = 100;
  static constexpr int kGroupIssue = 101;
  static constexpr int kGroupFence = 102;
  static constexpr int kGroupCommit = 103;
  static constexpr int kGroupWait = 104;
  static constexpr int kSetRegisters = 105;

  enum class State : uint8_t { kReady, kWaiting, kDone };
  struct Copy {
    char* to;
    const char* from;
    int bytes;  // of `to`; those behind `valid` become 0
    int valid;
    bool landed;
    const void* site;
    bool any_value = false;  // what it reads may not be initialized, nor is its copy then
  };
  struct Thread {
    boost::context::fiber fiber;      // where the thread stands, while it does not run
    boost::context::fiber scheduler;  // where the scheduler stands, while the thread runs
    char* stack = nullptr;            // lowest address
    ThreadPlace place;
    State state = State::kDone;
    bool in_kernel = false;
    const char* waits_at = "";  // for deadlocks
    const void* site = nullptr;
    std::vector<Copy> open_copies;
    std::deque<std::vector<Copy>> copy_groups;
    VectorClock clock;
    uint32_t proxy_fences = 0;
    // Of matrix instructions: which 4 bytes of the stack, where registers lie here, were touched
    // since a fence named them (empty before the first fence), and what instructions under way use.
    std::vector<uint64_t> touched;
    std::vector<Registers> busy;
  };
  struct Barrier {
    int expected = 0;
    const void* site = nullptr;
    std::vector<int> arrived;
  };
  struct LaneCall {
    uint64_t in = 0;
    uint64_t out = 0;
    int source = 0;
    float* d = nullptr;
    const uint32_t* a = nullptr;
    const uint32_t* b = nullptr;
    uint32_t* words = nullptr;
    const void* row = nullptr;
    const GroupMma* mma = nullptr;
  };
  // A warp's part of a matrix instruction of its warpgroup.
  struct GroupOp {
    GroupMma mma;  // lane 0's
    float* d[32];
    const uint32_t* a[32];
    std::vector<uint32_t> units;  // of shared memory, that it reads; see SharedUnit
    bool executed = false;
    const void* site = nullptr;
  };
  struct WarpState {
    int arrived = 0;
    int op = -1;
    const void* site = nullptr;
    LaneCall lanes[32];
    std::vector<GroupOp> open_mmas;
    std::deque<std::vector<GroupOp>> mma_groups;
    std::vector<std::pair<GroupMma, const void*>> issued;  // for comparison with the other warps
    int registers = 0;                                     // of a thread; 0: as launched
    const void* registers_site = nullptr;
  };
  // 16 bytes of shared memory.
  struct SharedUnit {
    uint16_t readers = 0;  // instructions under way
    bool plain = false;    // brought by CopyBulk, as it lay
  };
  struct Transaction {
    int arrivals = 0;  // of a phase
    int missing = 0;   // arrivals of this phase
    int64_t bytes = 0;
    int parity = 0;  // of the phase under way
    VectorClock clock;
    std::vector<int> waiting;
  };
  struct BulkCopy {
    std::vector<Copy> parts;
    char* barrier;
    VectorClock clock;
  };

  void Prepare(int count);
  void Reset(const Grid& grid, int64_t block);
  void Schedule();
  void Resume(Thread& thread);
  void Yield();
  void Wait(const char* where, const void* site);
  void MakeReady(int thread);
  void ReportDeadlock();
  bool SamePlace(const void* a, const void* b) const;
  // All lanes call with their LaneCall; returns when `Perform` has run over them.
  LaneCall& MeetInWarp(int op, const char* name, const LaneCall& call, const void* site);
  // warp_ops.cc: what the warp's operations do.
  static void Perform(int op, LaneCall* lanes);
  void Land(Copy& copy);
  void FinishCopy(Copy& copy);
  void CheckCopy(const Copy& copy, bool by_engine, const void* site);
  void LandBulk(size_t index);
  void CompletePhase(Transaction& transaction);
  Transaction& TransactionAt(void* barrier, const void* site);
  void EnqueueBulk(std::vector<Copy> parts, void* barrier);
  // group_mma.cc
  void PerformGroup(int op, WarpState& warp, const void* site);  // by the last lane to come
  void StartGroupOp(WarpState& warp, const void* site);
  void CheckOtherWarps(const WarpState& warp, const void* site);
  void CheckUnit(uint32_t unit, const void* site);
  void NoteUnits(const GroupOp& op, int thread, bool begins, const void* site);
  void Execute(GroupOp& op);
  void FinishGroupOp(GroupOp& op, const void* site);
  void TouchRegisters(const void* address, int bytes, const void* site);
  void NoteSharedWrite(const void* address, int bytes, const void* site);
  bool IsUnfenced(size_t byte) const;
  std::string EndProblem(size_t warp, const void** site) const;
  bool EndedTogether();
  void NoteRace(const void* address, int bytes, bool write, bool atomic, const void* site);
  void JoinClocks(const std::vector<int>& threads);
  void Tick(int thread);
  bool CheckMemory(const void* address, int bytes, bool write, bool may_be_unaligned,
                   const void* site);
  const char* RangeProblem(const void* address, int bytes, bool write, FaultKind* kind) const;

  Grid* grid_ = nullptr;
  uint32_t block_ = 0;
  Thread* thread_ = nullptr;  // that runs
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<int> ready_;
  int left_ = 0;  // threads that have not returned
  Barrier barriers_[16];
  std::vector<WarpState> warps_;
  std::map<char*, Transaction> transactions_;
  std::vector<BulkCopy> bulk_copies_;
  uint32_t engine_clock_ = 0;  // of what has landed
  std::vector<SharedUnit> units_;
  // For each byte of shared memory the thread that wrote it last and how many fences it had behind
  // it, if it was written by a thread; 0: by nobody or by the copy engine.
  std::vector<uint32_t> writers_;
  char* shared_ = nullptr;
  size_t shared_used_ = 0;  // bytes that the last block had
  RaceMap shared_races_;
  Rng rng_{1};
};

// Kept for TakeFault if it is the first; printed where nobody takes faults. Sets the devices to
// failed.
void ReportFault(const Fault& fault);

// Whether what operation `op` of a stream does may use what `earlier` has written (stream.h).
bool IsOrderedBehind(uint32_t op, uint32_t earlier);

}  // namespace baton::simt

#endif  // BATON_TESTS_SIMT_BLOCK_H_
