// Matrix instructions of warpgroups, and the order in which they may use shared memory and
// registers. A warp's quarter of an instruction (16 rows of a and all of b) is one operation, which
// runs at once or when it is waited for, as drawn; in between its memory and registers are busy.

#include <algorithm>
#include <bit>
#include <cstring>
#include <sstream>
#include <utility>

#include "tests/simt/block.h"
#include "tests/simt/memory.h"

namespace baton::simt {
namespace {

constexpr int kFenceBits = 20;  // of an entry of writers_

uint32_t WriterEntry(int thread, uint32_t fences) {
  return static_cast<uint32_t>(thread) << kFenceBits | ((fences + 1) & ((1u << kFenceBits) - 1));
}

// A descriptor, taken apart.
struct Matrix {
  uint32_t start, leading, stride, swizzle, base;
  explicit Matrix(uint64_t bits)
      : start(static_cast<uint32_t>(bits & 0x3FFF) * 16),
        leading(static_cast<uint32_t>(bits >> 16 & 0x3FFF) * 16),
        stride(static_cast<uint32_t>(bits >> 32 & 0x3FFF) * 16),
        swizzle(static_cast<uint32_t>(bits >> 62)),
        base(static_cast<uint32_t>(bits >> 49 & 7)) {}

  // Empty, or what is wrong with it.
  std::string Problem(bool by_columns) const {
    if (swizzle != 1 || base != 0) return "an operand without the 128-byte swizzle";
    const uint32_t in_row = start % 1024;
    if (by_columns ? in_row != 0 : in_row >= 128 || in_row % 32 != 0) {
      return "an operand whose rows do not begin at a multiple of 1024 bytes, but at byte " +
             std::to_string(start);
    }
    if (stride % 1024 != 0 || (by_columns && leading % 1024 != 0)) {
      return "an operand whose groups of rows lie " +
             std::to_string(stride % 1024 != 0 ? stride : leading) + " bytes apart";
    }
    return "";
  }
  static uint32_t Swizzled(uint32_t byte) { return (byte ^ ((byte >> 7 & 7) << 4)) / 16; }
  // Of a row, the half-th 16 bytes of the instruction's 32.
  uint32_t RowUnit(int row, int half) const {
    return Swizzled(start + static_cast<uint32_t>(row / 8) * stride +
                    static_cast<uint32_t>(row % 8) * 128 + static_cast<uint32_t>(half) * 16);
  }
  // Of row k, columns 8 eight .. 8 eight + 7.
  uint32_t ColumnUnit(int eight, int k) const {
    return Swizzled(start + static_cast<uint32_t>(eight / 8) * leading +
                    static_cast<uint32_t>(eight % 8) * 16 + static_cast<uint32_t>(k / 8) * stride +
                    static_cast<uint32_t>(k % 8) * 128);
  }
};

float Bf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// E4M3 (fn); not kernels/numeric.h, which this must not share a fault with.
float E4M3(uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  if ((code & 0x7F) == 0x7F) return std::bit_cast<float>(0x7FC00000u);
  const float magnitude = exponent == 0 ? static_cast<float>(mantissa) * 0x1p-9f
                                        : static_cast<float>(8 + mantissa) * 0x1p-10f *
                                              static_cast<float>(1 << exponent);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

// The 16 bytes of a unit as 8 BF16 or 16 E4M3.
void Widen(const char* unit, bool e4m3, float* out) {
  for (int i = 0; i < (e4m3 ? 16 : 8); ++i) {
    uint16_t two = 0;
    if (!e4m3) std::memcpy(&two, unit + 2 * i, 2);
    out[i] = e4m3 ? E4M3(static_cast<uint8_t>(unit[i])) : Bf16(two);
  }
}

bool SameInstruction(const GroupMma& x, const GroupMma& y) {
  return x.n == y.n && x.e4m3 == y.e4m3 && x.add == y.add && x.b_by_columns == y.b_by_columns &&
         x.a == y.a && x.b == y.b && (x.a_registers == nullptr) == (y.a_registers == nullptr);
}

constexpr int kRegistersA = 4;

// sums[j] += a[k] b[k][j] for k ascending; columns are a multiple of 8.
#if defined(__x86_64__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
void AddProducts(const float* a, const double* b, int depth, int columns, double* sums) {
  using Eight [[gnu::vector_size(64), gnu::aligned(8)]] = double;
  for (int j = 0; j < columns; j += 8) {
    Eight sum = *reinterpret_cast<const Eight*>(sums + j);
    for (int k = 0; k < depth; ++k) {
      sum += static_cast<double>(a[k]) * *reinterpret_cast<const Eight*>(b + k * columns + j);
    }
    *reinterpret_cast<Eight*>(sums + j) = sum;
  }
}

}  // namespace

uint32_t BlockRunner::SharedAddress(const void* pointer, const void* site) {
  const char* const at = static_cast<const char*>(pointer);
  if (at < shared_ || at >= shared_ + kMaxSharedBytes) {
    Fail(FaultKind::kOutOfBounds, "a matrix operand that is not in the block's shared memory",
         site);
  }
  return static_cast<uint32_t>(at - shared_);
}

// --- shared memory

bool BlockRunner::IsUnfenced(size_t byte) const {
  const uint32_t entry = writers_[byte];
  if (entry == 0) return false;
  const int thread = static_cast<int>(entry >> kFenceBits);
  return entry == WriterEntry(thread, threads_[static_cast<size_t>(thread)]->proxy_fences);
}

void BlockRunner::NoteSharedWrite(const void* address, int bytes, const void* site) {
  const char* const at = static_cast<const char*>(address);
  if (at < shared_ || at + bytes > shared_ + kMaxSharedBytes) return;
  const auto first = static_cast<size_t>(at - shared_);
  const size_t last = first + static_cast<size_t>(bytes) - 1;
  for (size_t unit = first / 16; unit <= last / 16; ++unit) {
    if (units_[unit].readers > 0) {
      Fail(FaultKind::kGroupMma,
           "write of " + Memory::Get().Describe(address) +
               ", which a matrix instruction under way may still read",
           site);
    }
    units_[unit].plain = false;
  }
  std::fill_n(writers_.begin() + static_cast<int64_t>(first), bytes,
              WriterEntry(thread_->place.thread, thread_->proxy_fences));
}

void BlockRunner::CheckUnit(uint32_t unit, const void* site) {
  const char* const at = shared_ + size_t{unit} * 16;
  const auto fail = [&](FaultKind kind, const std::string& what) {
    Fail(kind, "a matrix operand " + what + ": " + Memory::Get().Describe(at), site);
  };
  if ((size_t{unit} + 1) * 16 > shared_used_) {
    fail(FaultKind::kOutOfBounds,
         "that reaches behind the block's " + std::to_string(shared_used_) + " bytes");
  }
  FaultKind kind = FaultKind::kOutOfBounds;
  const char* const problem = RangeProblem(at, 16, /*write=*/false, &kind);
  if (problem != nullptr) fail(kind, problem);
  for (size_t byte = size_t{unit} * 16; byte < size_t{unit} * 16 + 16; ++byte) {
    if (IsUnfenced(byte)) {
      fail(FaultKind::kProxy, "that thread " + std::to_string(writers_[byte] >> kFenceBits) +
                                  " has written without FenceAsyncProxy behind");
    }
  }
  if (units_[unit].plain) fail(FaultKind::kGroupMma, "that CopyBulk brought, not swizzled");
}

// Reads of the warp's first lane: behind all writes at the beginning, before all later ones at the
// end, from when on they are known (in between the unit has a reader).
void BlockRunner::NoteUnits(const GroupOp& op, int thread, bool begins, const void* site) {
  if (grid_->races == nullptr) return;
  const VectorClock& clock = threads_[static_cast<size_t>(thread)]->clock;
  for (const uint32_t unit : op.units) {
    const char* const at = shared_ + size_t{unit} * 16;
    const size_t address = reinterpret_cast<size_t>(at);
    const std::optional<AccessRecord> earlier =
        begins ? shared_races_.Check(address, 16, /*write=*/false, block_, thread, clock)
               : shared_races_.Note(address, 16, /*write=*/false, /*atomic=*/false, block_, thread,
                                    clock, site);
    if (!earlier.has_value()) continue;
    std::ostringstream what;
    what << "a matrix operand, " << Memory::Get().Describe(at)
         << ", not ordered behind the access of ";
    if (earlier->thread == grid_->threads) {
      what << "the copy engine for a copy";
    } else {
      what << "thread " << earlier->thread;
    }
    what << " at " << Locate(earlier->site);
    Fail(FaultKind::kRace, what.str(), site);
  }
}

// --- registers

void BlockRunner::TouchRegisters(const void* address, int bytes, const void* site) {
  const char* const at = static_cast<const char*>(address);
  for (const Registers& range : thread_->busy) {
    const char* const begin = static_cast<const char*>(range.data);
    if (at + bytes > begin && at < begin + range.bytes) {
      Fail(FaultKind::kGroupMma,
           "registers of a matrix instruction that no GroupMmaWait has named since", site);
    }
  }
  const auto first = static_cast<size_t>(at - thread_->stack) / 4;
  const auto last = static_cast<size_t>(at - thread_->stack + bytes - 1) / 4;
  for (size_t word = first; word <= last; ++word) {
    thread_->touched[word / 64] |= uint64_t{1} << word % 64;
  }
}

void BlockRunner::GroupMmaFence(const Registers* named, int count, const void* site) {
  MeetInWarp(kGroupFence, "GroupMmaFence", {}, site);
  std::vector<uint64_t>& touched = thread_->touched;
  if (touched.empty()) touched.assign(kStackBytes / 4 / 64, ~uint64_t{0});
  for (int i = 0; i < count; ++i) {
    const auto first =
        static_cast<size_t>(static_cast<const char*>(named[i].data) - thread_->stack) / 4;
    for (size_t word = first; word < first + static_cast<size_t>(named[i].bytes) / 4; ++word) {
      touched[word / 64] &= ~(uint64_t{1} << word % 64);
    }
  }
}

// --- instructions

void BlockRunner::IssueGroupMma(const GroupMma& mma, const void* site) {
  const Registers used[2] = {{mma.d, mma.n / 2 * 4},
                             {mma.a_registers, mma.a_registers == nullptr ? 0 : kRegistersA * 4}};
  std::vector<Registers>& busy = thread_->busy;
  for (const Registers& range : used) {
    const bool under_way = std::any_of(busy.begin(), busy.end(), [&](const Registers& other) {
      return other.data == range.data && other.bytes == range.bytes;
    });
    if (range.bytes == 0 || under_way) continue;
    const auto first =
        static_cast<size_t>(static_cast<const char*>(range.data) - thread_->stack) / 4;
    for (size_t word = first; word < first + static_cast<size_t>(range.bytes) / 4; ++word) {
      if (thread_->touched.empty() || (thread_->touched[word / 64] >> word % 64 & 1) != 0) {
        Fail(FaultKind::kGroupMma,
             "a matrix instruction uses registers that were touched since a GroupMmaFence named "
             "them",
             site);
      }
    }
    busy.push_back(range);
  }
  MeetInWarp(kGroupIssue, "a warpgroup's matrix instruction", {.mma = &mma}, site);
}

void BlockRunner::CheckOtherWarps(const WarpState& warp, const void* site) {
  const size_t own = static_cast<size_t>(&warp - warps_.data());
  const size_t index = warp.issued.size() - 1;
  if (own / 4 * 4 + 4 > warps_.size()) {
    Fail(FaultKind::kGroupMma,
         "a warpgroup's matrix instruction by warp " + std::to_string(own) + ", whose group has " +
             std::to_string(warps_.size() % 4) + " warps",
         site);
  }
  for (size_t other = own / 4 * 4; other < own / 4 * 4 + 4; ++other) {
    const auto& issued = warps_[other].issued;
    if (issued.size() <= index || (SameInstruction(issued[index].first, warp.issued[index].first) &&
                                   SamePlace(issued[index].second, site))) {
      continue;
    }
    Fail(FaultKind::kGroupMma,
         "warps " + std::to_string(own) + " and " + std::to_string(other) +
             " of a warpgroup issue different matrix instructions; the other's is at " +
             Locate(issued[index].second),
         site);
  }
}

// By the last lane to come.
void BlockRunner::StartGroupOp(WarpState& warp, const void* site) {
  GroupOp op{.mma = *warp.lanes[0].mma, .d = {}, .a = {}, .units = {}, .site = site};
  for (int lane = 0; lane < 32; ++lane) {
    const GroupMma& mma = *warp.lanes[lane].mma;
    if (!SameInstruction(mma, op.mma)) {
      Fail(FaultKind::kGroupMma, "lanes of a warp issue different matrix instructions", site);
    }
    op.d[lane] = mma.d;
    op.a[lane] = mma.a_registers;
  }
  warp.issued.emplace_back(op.mma, site);
  CheckOtherWarps(warp, site);
  const Matrix a(op.mma.a), b(op.mma.b);
  const int number = static_cast<int>(&warp - warps_.data());
  std::string problem = b.Problem(op.mma.b_by_columns);
  if (problem.empty() && op.mma.a_registers == nullptr) problem = a.Problem(false);
  if (!problem.empty()) Fail(FaultKind::kGroupMma, problem, site);
  for (int i = 0; i < 32 && op.mma.a_registers == nullptr; ++i) {
    op.units.push_back(a.RowUnit(number % 4 * 16 + i / 2, i % 2));
  }
  for (int i = 0; i < op.mma.n * 2; ++i) {
    op.units.push_back(op.mma.b_by_columns ? b.ColumnUnit(i / 16, i % 16)
                                           : b.RowUnit(i / 2, i % 2));
  }
  for (const uint32_t unit : op.units) {
    CheckUnit(unit, site);
    ++units_[unit].readers;
  }
  NoteUnits(op, number * 32, /*begins=*/true, site);
  if (warp.open_mmas.empty() && warp.mma_groups.empty() && rng_.Chance(0.5)) Execute(op);
  warp.open_mmas.push_back(std::move(op));
}

void BlockRunner::Execute(GroupOp& op) {
  if (std::exchange(op.executed, true)) return;
  const GroupMma& mma = op.mma;
  const int depth = mma.e4m3 ? 32 : 16, n = mma.n;
  float a[16][32];
  static thread_local std::vector<double> b;  // [depth][n]
  static thread_local std::vector<double> sums;
  b.resize(static_cast<size_t>(depth) * static_cast<size_t>(n));
  size_t next = 0;
  const auto unit = [&] { return shared_ + size_t{op.units[next++]} * 16; };
  for (int i = 0; i < 32 && mma.a_registers == nullptr; ++i) {
    Widen(unit(), mma.e4m3, &a[i / 2][i % 2 * (depth / 2)]);
  }
  for (int lane = 0; lane < 32 && mma.a_registers != nullptr; ++lane) {
    for (int i = 0; i < 8; ++i) {
      const uint32_t pair = op.a[lane][i / 2];
      a[lane / 4 + i / 2 % 2 * 8][lane % 4 * 2 + i % 2 + i / 4 * 8] =
          Bf16(static_cast<uint16_t>(i % 2 == 0 ? pair : pair >> 16));
    }
  }
  for (int i = 0; i < n * 2; ++i) {
    float values[16];
    Widen(unit(), mma.e4m3, values);
    for (int j = 0; j < depth / 2; ++j) {
      const int k = mma.b_by_columns ? i % 16 : i % 2 * (depth / 2) + j;
      const int column = mma.b_by_columns ? i / 16 * 8 + j : i / 2;
      b[static_cast<size_t>(k) * static_cast<size_t>(n) + static_cast<size_t>(column)] = values[j];
    }
  }
  sums.resize(static_cast<size_t>(n));
  for (int row = 0; row < 16; ++row) {
    const auto d = [&](int column) -> float& {
      return op.d[row % 8 * 4 + column % 8 / 2][column / 8 * 4 + row / 8 * 2 + column % 2];
    };
    for (int j = 0; j < n; ++j) sums[static_cast<size_t>(j)] = mma.add ? d(j) : 0.0f;
    AddProducts(a[row], b.data(), depth, n, sums.data());
    for (int j = 0; j < n; ++j) d(j) = static_cast<float>(sums[static_cast<size_t>(j)]);
  }
}

void BlockRunner::FinishGroupOp(GroupOp& op, const void* site) {
  Execute(op);
  for (const uint32_t unit : op.units) --units_[unit].readers;
  NoteUnits(op, thread_->place.thread / 32 * 32, /*begins=*/false, site);
}

void BlockRunner::GroupMmaCommit(const void* site) {
  MeetInWarp(kGroupCommit, "GroupMmaCommit", {}, site);
}

void BlockRunner::PerformGroup(int op, WarpState& warp, const void* site) {
  if (op == kGroupIssue) return StartGroupOp(warp, site);
  if (op == kSetRegisters) {
    warp.registers = warp.lanes[0].source;
    warp.registers_site = site;
  }
  if (op == kGroupCommit) warp.mma_groups.push_back(std::exchange(warp.open_mmas, {}));
  if (op != kGroupWait) return;
  while (static_cast<int>(warp.mma_groups.size()) > warp.lanes[0].source) {
    for (GroupOp& done : warp.mma_groups.front()) FinishGroupOp(done, site);
    warp.mma_groups.pop_front();
  }
}

void BlockRunner::GroupMmaWait(int pending, const Registers* named, int count, const void* site) {
  MeetInWarp(kGroupWait, "GroupMmaWait", {.source = pending}, site);
  const WarpState& warp = warps_[static_cast<size_t>(thread_->place.thread / 32)];
  const int lane = thread_->place.thread % 32;
  const auto under_way = [&](const void* data) {
    const auto uses = [&](const GroupOp& op) { return op.d[lane] == data || op.a[lane] == data; };
    if (std::any_of(warp.open_mmas.begin(), warp.open_mmas.end(), uses)) return true;
    return std::any_of(warp.mma_groups.begin(), warp.mma_groups.end(), [&](const auto& group) {
      return std::any_of(group.begin(), group.end(), uses);
    });
  };
  for (int i = 0; i < count; ++i) {
    const char* const begin = static_cast<const char*>(named[i].data);
    std::erase_if(thread_->busy, [&](const Registers& range) {
      const char* const at = static_cast<const char*>(range.data);
      return at >= begin && at + range.bytes <= begin + named[i].bytes && !under_way(range.data);
    });
  }
}

void BlockRunner::SetRegisters(int count, const void* site) {
  MeetInWarp(kSetRegisters, "GiveRegisters or TakeRegisters", {.source = count}, site);
}

// --- when all threads have returned

// What is wrong with what a warp has done, compared with the first of its group.
std::string BlockRunner::EndProblem(size_t number, const void** site) const {
  const WarpState& warp = warps_[number];
  const WarpState& first = warps_[number / 4 * 4];
  const auto& issued = warp.issued.empty() ? first.issued : warp.issued;
  *site = issued.empty() ? nullptr : issued.back().second;
  if (!warp.open_mmas.empty() || !warp.mma_groups.empty()) {
    return "a warp returns while its matrix instructions are under way";
  }
  if (warp.issued.size() != first.issued.size()) {
    return "warps of a warpgroup have issued different numbers of matrix instructions: " +
           std::to_string(warp.issued.size()) + " and " + std::to_string(first.issued.size());
  }
  if (warp.registers == 0 && first.registers == 0) return "";
  *site = warp.registers == 0 ? first.registers_site : warp.registers_site;
  if (warp.registers != first.registers || number / 4 * 4 + 4 > warps_.size()) {
    return "not all four warps of a warpgroup set the same number of registers";
  }
  constexpr int kWarpRegisters = 65536 / 32;
  int sum = 0;
  for (const WarpState& other : warps_) sum += other.registers;
  return sum <= kWarpRegisters
             ? ""
             : "the block's warps want " + std::to_string(32 * sum) + " registers, there are 65536";
}

bool BlockRunner::EndedTogether() {
  for (size_t i = 0; i < warps_.size(); ++i) {
    const void* site = nullptr;
    const std::string what = EndProblem(i, &site);
    if (what.empty()) continue;
    Fault fault{.kind = FaultKind::kGroupMma,
                .what = what,
                .kernel = FunctionName(grid_->kernel),
                .where = Locate(site)};
    const ThreadPlace& place = threads_[i * 32]->place;
    std::copy(place.block, place.block + 3, fault.block);
    fault.thread = place.thread;
    ReportFault(fault);
    return false;
  }
  return true;
}

}  // namespace baton::simt
