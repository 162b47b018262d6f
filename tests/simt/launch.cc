#include "tests/simt/launch.h"

#include "base/check.h"
#include "tests/simt/block.h"

// The site is where this call returns to, in the kernel.
#define BATON_SIMT_SITE __builtin_return_address(0)

namespace baton::simt::calls {
namespace {

BlockRunner& Runner() {
  BlockRunner* const runner = BlockRunner::Current();
  BATON_CHECK_MSG(runner != nullptr, "a function of device.h was called outside of a kernel");
  return *runner;
}

}  // namespace

int Thread() { return Runner().place().thread; }
int Threads() { return Runner().place().threads; }
int Block(int axis) { return Runner().place().block[axis]; }
int GridBlocks(int axis) { return Runner().place().grid[axis]; }
void* SharedBytes(size_t bytes) { return Runner().SharedBytes(bytes, BATON_SIMT_SITE); }
void SyncBlock(int barrier, int threads) { Runner().SyncBlock(barrier, threads, BATON_SIMT_SITE); }
void SyncWarp() { Runner().SyncWarp(BATON_SIMT_SITE); }
void Trap() { Runner().Fail(FaultKind::kTrap, "the kernel stopped itself", BATON_SIMT_SITE); }

uint64_t Shuffle(uint64_t value, int source) {
  return Runner().Shuffle(value, source, BATON_SIMT_SITE);
}
uint32_t Ballot(bool predicate) { return Runner().Ballot(predicate, BATON_SIMT_SITE); }
void LoadMatrix(uint32_t* out, const void* row, bool transposed) {
  Runner().LoadMatrix(out, row, transposed, BATON_SIMT_SITE);
}
void Mma(WarpOp op, float* d, const uint32_t* a, const uint32_t* b) {
  Runner().Mma(op, d, a, b, BATON_SIMT_SITE);
}

uint32_t Atomic(AtomicOp op, void* address, uint32_t value) {
  return Runner().Atomic(op, address, value, BATON_SIMT_SITE);
}

void CopyAsync(void* shared, const void* global, int valid) {
  Runner().CopyAsync(shared, global, valid, BATON_SIMT_SITE);
}
void CopyAsyncCommit() { Runner().CopyAsyncCommit(); }
void CopyAsyncWait(int pending) { Runner().CopyAsyncWait(pending, BATON_SIMT_SITE); }

void InitTransaction(void* barrier, int arrivals) {
  Runner().InitTransaction(barrier, arrivals, BATON_SIMT_SITE);
}
void ArriveTransaction(void* barrier, int bytes) {
  Runner().ArriveTransaction(barrier, bytes, BATON_SIMT_SITE);
}
void AwaitTransaction(void* barrier, int parity) {
  Runner().AwaitTransaction(barrier, parity, BATON_SIMT_SITE);
}
void CopyBulk(void* shared, const void* global, int bytes, void* barrier) {
  Runner().CopyBulk(shared, global, bytes, barrier, BATON_SIMT_SITE);
}

void CopyTensor(void* shared, const void* map, const int (&at)[3], void* barrier) {
  Runner().CopyTensor(shared, map, at, barrier, BATON_SIMT_SITE);
}
void PrefetchTensorMap(const void* map) { Runner().PrefetchTensorMap(map, BATON_SIMT_SITE); }

void IssueGroupMma(const GroupMma& mma) { Runner().IssueGroupMma(mma, BATON_SIMT_SITE); }
void GroupMmaFence(const Registers* named, int count) {
  Runner().GroupMmaFence(named, count, BATON_SIMT_SITE);
}
void GroupMmaCommit() { Runner().GroupMmaCommit(BATON_SIMT_SITE); }
void GroupMmaWait(int pending, const Registers* named, int count) {
  Runner().GroupMmaWait(pending, named, count, BATON_SIMT_SITE);
}
void SetRegisters(int count) { Runner().SetRegisters(count, BATON_SIMT_SITE); }
void FenceAsyncProxy() { Runner().FenceAsyncProxy(); }
uint32_t SharedAddress(const void* pointer) {
  return Runner().SharedAddress(pointer, BATON_SIMT_SITE);
}

}  // namespace baton::simt::calls
