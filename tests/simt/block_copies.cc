// Asynchronous copies and transactions of a block's threads.

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "tests/simt/block.h"
#include "tests/simt/memory.h"
#include "tests/simt/options.h"
#include "tests/simt/tensor_map.h"
#include "tests/simt/touch.h"

namespace baton::simt {
namespace {

std::atomic<uint64_t> boxes{0};

}  // namespace

uint64_t BoxCount() { return boxes; }

// --- asynchronous copies

void BlockRunner::CheckCopy(const Copy& copy, bool by_engine, const void* site) {
  const auto fail = [&](FaultKind kind, const std::string& what) { Fail(kind, what, site); };
  if (copy.to < shared_ || copy.to + copy.bytes > shared_ + kMaxSharedBytes) {
    fail(FaultKind::kOutOfBounds,
         "an asynchronous copy to memory that is not the block's shared memory");
  }
  if (reinterpret_cast<uintptr_t>(copy.to) % 16 != 0 ||
      (copy.valid > 0 && reinterpret_cast<uintptr_t>(copy.from) % 16 != 0)) {
    fail(FaultKind::kMisaligned, "an asynchronous copy is aligned to 16 bytes on both sides");
  }
  const size_t first = static_cast<size_t>(copy.to - shared_);
  for (size_t byte = first; by_engine && byte < first + static_cast<size_t>(copy.bytes); ++byte) {
    if (IsUnfenced(byte)) {
      fail(FaultKind::kProxy,
           "a copy of the copy engine to bytes that thread " +
               std::to_string(writers_[byte] >> 20) +
               " has written without FenceAsyncProxy behind: " + Memory::Get().Describe(copy.to));
    }
  }
  // What it overwrites, and what it reads, as this thread's own accesses.
  for (int i = 0; i < copy.bytes; i += 16) {
    Access(copy.to + i, std::min(16, copy.bytes - i), /*write=*/true, false, site);
  }
  for (int i = 0; i < copy.valid; i += 16) {
    const int bytes = std::min(16, copy.valid - i);
    if (copy.any_value && Memory::Get().Contains(copy.from + i) &&
        Memory::Get().FirstWithout(copy.from + i, static_cast<size_t>(bytes), kAddressable) ==
            nullptr) {
      // What was never written may travel; using it then is the fault.
      if (grid_->races != nullptr) NoteRace(copy.from + i, bytes, /*write=*/false, false, site);
      continue;
    }
    Access(copy.from + i, bytes, /*write=*/false, /*may_be_unaligned=*/true, site);
  }
  if (by_engine) std::fill_n(writers_.begin() + static_cast<int64_t>(first), copy.bytes, 0);
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
  if (copy.any_value) CopyMarks(copy.to, copy.from, static_cast<size_t>(copy.valid));
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
  CheckCopy(copy, /*by_engine=*/false, site);
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
      NoteSharedWrite(copy.to, copy.bytes, site);  // no fence in front of the wait counts
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
  const Copy copy{.to = static_cast<char*>(shared),
                  .from = static_cast<const char*>(global),
                  .bytes = bytes,
                  .valid = bytes,
                  .landed = false,
                  .site = site};
  CheckCopy(copy, /*by_engine=*/true, site);
  const size_t first = static_cast<size_t>(copy.to - shared_) / 16;
  for (size_t i = 0; i < static_cast<size_t>(bytes) / 16; ++i) units_[first + i].plain = true;
  EnqueueBulk({copy}, barrier);
}

void BlockRunner::CopyTensor(void* shared, const void* map, const int (&at)[3], void* barrier,
                             const void* site) {
  TransactionAt(barrier, site);
  TensorBox box;
  const std::string problem = ReadTensorMap(map, &box);
  if (!problem.empty()) Fail(FaultKind::kOutOfBounds, problem, site);
  if ((static_cast<char*>(shared) - shared_) % 1024 != 0) {
    Fail(FaultKind::kMisaligned, "CopyTensor to what is not aligned to 1024 bytes", site);
  }
  std::vector<Copy> parts;
  const int64_t most = 16 / box.element_bytes;  // columns of a piece
  for (int row = 0; row < box.box_rows; ++row) {
    for (int piece = 0; piece < 8; ++piece) {
      const int64_t column = at[0] + piece * most;
      const bool inside = column >= 0 && at[1] + row >= 0 && at[1] + row < box.rows && at[2] >= 0 &&
                          at[2] < box.layers;
      const int64_t columns = inside ? std::clamp<int64_t>(box.columns - column, 0, most) : 0;
      Copy copy{.to = static_cast<char*>(shared) + row * 128 + (piece ^ row % 8) * 16,
                .from = box.data + at[2] * box.layer_bytes + (at[1] + row) * box.row_bytes +
                        column * box.element_bytes,
                .bytes = 16,
                .valid = static_cast<int>(columns * box.element_bytes),
                .landed = false,
                .site = site,
                .any_value = true};
      CheckCopy(copy, /*by_engine=*/true, site);
      parts.push_back(copy);
    }
  }
  boxes.fetch_add(1, std::memory_order_relaxed);
  EnqueueBulk(std::move(parts), barrier);
}

void BlockRunner::PrefetchTensorMap(const void* map, const void* site) {
  TensorBox box;
  const std::string problem = ReadTensorMap(map, &box);
  if (!problem.empty()) Fail(FaultKind::kOutOfBounds, problem, site);
}

void BlockRunner::EnqueueBulk(std::vector<Copy> parts, void* barrier) {
  bulk_copies_.push_back(
      {.parts = std::move(parts), .barrier = static_cast<char*>(barrier), .clock = thread_->clock});
}

void BlockRunner::LandBulk(size_t index) {
  BulkCopy bulk = std::move(bulk_copies_[index]);
  bulk_copies_[index] = std::move(bulk_copies_.back());
  bulk_copies_.pop_back();
  if (grid_->races != nullptr) bulk.clock[static_cast<size_t>(grid_->threads)] = ++engine_clock_;
  Transaction& transaction = transactions_.at(bulk.barrier);
  for (Copy& copy : bulk.parts) {
    FinishCopy(copy);
    transaction.bytes -= copy.bytes;
    if (grid_->races == nullptr) continue;
    // A write of the copy engine, which only waiting for the transaction orders. What it may have
    // overwritten was checked when it was issued.
    for (int i = 0; i < copy.bytes; i += 16) {
      (void)shared_races_.Note(reinterpret_cast<size_t>(copy.to + i), 16, /*write=*/true,
                               /*atomic=*/false, block_, grid_->threads, bulk.clock, copy.site);
    }
  }
  Join(transaction.clock, bulk.clock);
  CompletePhase(transaction);
}

}  // namespace baton::simt
