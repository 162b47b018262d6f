// Asynchronous copies and transactions of a block's threads.

#include <algorithm>
#include <cstring>
#include <utility>

#include "tests/simt/block.h"
#include "tests/simt/memory.h"

namespace baton::simt {

// --- asynchronous copies

void BlockRunner::CheckCopy(const Copy& copy, const void* site) {
  const auto fail = [&](FaultKind kind, const std::string& what) { Fail(kind, what, site); };
  if (copy.to < shared_ || copy.to + copy.bytes > shared_ + kMaxSharedBytes) {
    fail(FaultKind::kOutOfBounds,
         "an asynchronous copy to memory that is not the block's shared memory");
  }
  if (reinterpret_cast<uintptr_t>(copy.to) % 16 != 0 ||
      (copy.valid > 0 && reinterpret_cast<uintptr_t>(copy.from) % 16 != 0)) {
    fail(FaultKind::kMisaligned, "an asynchronous copy is aligned to 16 bytes on both sides");
  }
  // What it overwrites, and what it reads, as this thread's own accesses.
  for (int i = 0; i < copy.bytes; i += 16) {
    Access(copy.to + i, std::min(16, copy.bytes - i), /*write=*/true, false, site);
  }
  for (int i = 0; i < copy.valid; i += 16) {
    Access(copy.from + i, std::min(16, copy.valid - i), /*write=*/false,
           /*may_be_unaligned=*/true, site);
  }
  Memory::Get().Mark(copy.to, static_cast<size_t>(copy.bytes), kAddressable | kInFlight);
}

void BlockRunner::Land(Copy& copy) {
  if (std::exchange(copy.landed, true)) return;
  std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.valid));
  std::memset(copy.to + copy.valid, 0, static_cast<size_t>(copy.bytes - copy.valid));
}

void BlockRunner::FinishCopy(Copy& copy) {
  Land(copy);
  Memory::Get().Mark(copy.to, static_cast<size_t>(copy.bytes), kAddressable | kInitialized);
}

void BlockRunner::CopyAsync(void* shared, const void* global, int valid, const void* site) {
  if (valid < 0 || valid > 16) {
    Fail(FaultKind::kOutOfBounds, "CopyAsync16 of " + std::to_string(valid) + " valid bytes", site);
  }
  Copy copy{.to = static_cast<char*>(shared),
            .from = static_cast<const char*>(global),
            .bytes = 16,
            .valid = valid,
            .landed = false,
            .site = site};
  CheckCopy(copy, site);
  // Between now and the wait: at one of the two ends.
  if (rng_.Chance(0.5)) Land(copy);
  thread_->open_copies.push_back(copy);
}

void BlockRunner::CopyAsyncCommit() {
  thread_->copy_groups.push_back(std::exchange(thread_->open_copies, {}));
}

void BlockRunner::CopyAsyncWait(int pending, const void* site) {
  while (static_cast<int>(thread_->copy_groups.size()) > pending) {
    std::vector<Copy> group = std::move(thread_->copy_groups.front());
    thread_->copy_groups.pop_front();
    for (Copy& copy : group) {
      FinishCopy(copy);
      if (grid_->races != nullptr) {
        NoteRace(copy.to, copy.bytes, /*write=*/true, /*atomic=*/false, site);
      }
    }
  }
}

// --- transactions

BlockRunner::Transaction& BlockRunner::TransactionAt(void* barrier, const void* site) {
  Access(barrier, 8, /*write=*/false, /*may_be_unaligned=*/false, site);
  const auto it = transactions_.find(static_cast<char*>(barrier));
  if (it == transactions_.end()) {
    Fail(FaultKind::kUninitialized, "a transaction barrier without InitTransaction", site);
  }
  return it->second;
}

void BlockRunner::InitTransaction(void* barrier, int arrivals, const void* site) {
  Access(barrier, 8, /*write=*/true, /*may_be_unaligned=*/false, site);
  if (arrivals < 1) {
    Fail(FaultKind::kBarrier, "a transaction barrier of " + std::to_string(arrivals) + " arrivals",
         site);
  }
  transactions_[static_cast<char*>(barrier)] = {
      .arrivals = arrivals, .missing = arrivals, .clock = VectorClock(thread_->clock.size(), 0)};
}

void BlockRunner::ArriveTransaction(void* barrier, int bytes, const void* site) {
  Transaction& transaction = TransactionAt(barrier, site);
  if (transaction.missing == 0) {
    Fail(FaultKind::kBarrier, "more arrivals at a transaction barrier than its phase has", site);
  }
  Join(transaction.clock, thread_->clock);
  if (grid_->races != nullptr) Tick(thread_->place.thread);
  transaction.bytes += bytes;
  --transaction.missing;
  CompletePhase(transaction);
}

void BlockRunner::CompletePhase(Transaction& transaction) {
  if (transaction.missing > 0 || transaction.bytes != 0) return;
  transaction.missing = transaction.arrivals;
  transaction.parity ^= 1;
  for (const int thread : std::exchange(transaction.waiting, {})) MakeReady(thread);
}

void BlockRunner::AwaitTransaction(void* barrier, int parity, const void* site) {
  Transaction& transaction = TransactionAt(barrier, site);
  if (transaction.parity == parity) {
    transaction.waiting.push_back(thread_->place.thread);
    Wait("a transaction", site);
  }
  Join(thread_->clock, transaction.clock);
}

void BlockRunner::CopyBulk(void* shared, const void* global, int bytes, void* barrier,
                           const void* site) {
  TransactionAt(barrier, site);
  if (bytes <= 0 || bytes % 16 != 0) {
    Fail(FaultKind::kMisaligned, "CopyBulk of " + std::to_string(bytes) + " bytes", site);
  }
  BulkCopy bulk{.copy = {.to = static_cast<char*>(shared),
                         .from = static_cast<const char*>(global),
                         .bytes = bytes,
                         .valid = bytes,
                         .landed = false,
                         .site = site},
                .barrier = static_cast<char*>(barrier),
                .clock = thread_->clock};
  CheckCopy(bulk.copy, site);
  bulk_copies_.push_back(std::move(bulk));
}

void BlockRunner::LandBulk(size_t index) {
  BulkCopy bulk = std::move(bulk_copies_[index]);
  bulk_copies_[index] = std::move(bulk_copies_.back());
  bulk_copies_.pop_back();
  FinishCopy(bulk.copy);
  if (grid_->races != nullptr) {
    // A write of the copy engine, which only waiting for the transaction orders. What it may have
    // overwritten was checked when it was issued.
    bulk.clock[static_cast<size_t>(grid_->threads)] = ++engine_clock_;
    for (int i = 0; i < bulk.copy.bytes; i += 16) {
      (void)shared_races_.Note(reinterpret_cast<size_t>(bulk.copy.to + i), 16, /*write=*/true,
                               /*atomic=*/false, block_, grid_->threads, bulk.clock,
                               bulk.copy.site);
    }
  }
  Transaction& transaction = transactions_.at(bulk.barrier);
  Join(transaction.clock, bulk.clock);
  transaction.bytes -= bulk.copy.bytes;
  CompletePhase(transaction);
}

}  // namespace baton::simt
