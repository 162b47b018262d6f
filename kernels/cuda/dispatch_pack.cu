#include "kernels/cuda/copy_rows.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/elements.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// A row's records, by choice; -1: the choice is of a rank that an earlier choice is of.
struct RowRecords {
  int32_t at[DispatchPackLaunch::kMaxChoices];
};

// The values are read once and go to every record.
template <typename Word>
BATON_DEVICE void CopyValues(const DispatchPackLaunch& args, const RowRecords& records,
                             const uint8_t* from, int64_t bytes, int64_t record_offset) {
  const Word* const words = reinterpret_cast<const Word*>(from);
  const int64_t count = bytes / static_cast<int64_t>(sizeof(Word));
  for (int64_t i = ThreadIndex(); i < count; i += kThreads) {
    const Word word = words[i];
#pragma unroll 1
    for (int choice = 0; choice < args.plan.choices; ++choice) {
      const int64_t record = records.at[choice];
      if (record < 0) continue;
      reinterpret_cast<Word*>(args.out + record * args.record_bytes + record_offset)[i] = word;
    }
  }
}

// What lies between and behind a record's parts.
BATON_DEVICE void ZeroGaps(const DispatchPackLaunch& args, uint8_t* record) {
  const int64_t tail = args.slots_at + 4 * args.plan.choices;
  for (int64_t i = args.row_bytes + ThreadIndex(); i < args.scales_at; i += kThreads) {
    record[i] = 0;
  }
  for (int64_t i = tail + ThreadIndex(); i < args.record_bytes; i += kThreads) record[i] = 0;
}

// Of each choice the slot on the record's rank.
BATON_DEVICE void WriteSlots(const DispatchPackLaunch& args, int row, int of_choice,
                             uint8_t* record) {
  const DispatchPlanLaunch& plan = args.plan;
  const int64_t begin = int64_t{row} * plan.choices;
  int32_t* const slots = reinterpret_cast<int32_t*>(record + args.slots_at);
  const int first = plan.physical[begin + of_choice] / plan.slots_per_rank * plan.slots_per_rank;
  for (int i = ThreadIndex(); i < plan.choices; i += kThreads) {
    const int slot = plan.physical[begin + i] - first;
    const bool wanted = slot >= 0 && slot < plan.slots_per_rank && plan.home_rows[begin + i] >= 0;
    slots[i] = wanted ? slot : plan.slots_per_rank;
  }
}

// Records behind the rows for a rank.
BATON_DEVICE void MarkUnused(const DispatchPackLaunch& args, int rank) {
  const DispatchPlanLaunch& plan = args.plan;
  const int block = plan.blocks == nullptr ? rank : plan.blocks[rank];
  if (block < 0) return;
  const int unused = plan.row_capacity - plan.counts[2 * rank];
  const int64_t first = int64_t{block} * plan.row_capacity + plan.counts[2 * rank];
  for (int i = ThreadIndex(); i < unused * plan.choices; i += kThreads) {
    uint8_t* const record = args.out + (first + i / plan.choices) * args.record_bytes;
    reinterpret_cast<int32_t*>(record + args.slots_at)[i % plan.choices] = plan.slots_per_rank;
  }
}

template <typename Word>
BATON_KERNEL(kThreads)
DispatchPackKernel(const DispatchPackLaunch args) {
  auto& records = SharedMemory<RowRecords>();
  const int row = BlockX();
  const int choices = args.plan.choices;
  if (row >= args.plan.rows) return MarkUnused(args, row - args.plan.rows);
  if (ThreadIndex() < choices) {
    records.at[ThreadIndex()] = args.plan.records[int64_t{row} * choices + ThreadIndex()];
  }
  SyncBlock();
  CopyValues<Word>(args, records, args.x + row * args.x_stride, args.row_bytes, 0);
  if (args.scales != nullptr) {
    CopyValues<uint32_t>(args, records, args.scales + row * args.scales_stride,
                         args.slots_at - args.scales_at, args.scales_at);
  }
#pragma unroll 1
  for (int choice = 0; choice < choices; ++choice) {
    if (records.at[choice] < 0) continue;
    uint8_t* const record = args.out + int64_t{records.at[choice]} * args.record_bytes;
    ZeroGaps(args, record);
    WriteSlots(args, row, choice, record);
  }
}

BATON_KERNEL(kThreads) DispatchUnpackKernel(const DispatchUnpackLaunch args) {
  const int row = BlockX();
  const uint8_t* const record = args.records + row * args.record_bytes;
  const int32_t* const slots = reinterpret_cast<const int32_t*>(record + args.slots_at);
  bool wants = false;
  for (int i = 0; i < args.choices; ++i) {
    const bool here = slots[i] >= 0 && slots[i] < args.slots_per_rank;
    wants = wants || here;
    if (i % kThreads == ThreadIndex()) {
      args.slots[int64_t{row} * args.choices + i] = here ? slots[i] : args.slots_per_rank;
    }
  }
  if (args.x.data == nullptr || !wants) return;
  const float* const scales = reinterpret_cast<const float*>(record + args.scales_at);
  for (int begin = 4 * ThreadIndex(); begin < args.hidden; begin += 4 * kThreads) {
    const float scale = scales[begin / 128];
    const int end = Least(begin + 4, args.hidden);
    for (int i = begin; i < end; ++i) {
      StoreElement(args.x, row, i, E4M3ToFloat(record[i]) * scale);
    }
  }
}

}  // namespace

cudaError_t LaunchDispatchPack(const DispatchPackLaunch& args, cudaStream_t stream) {
  const int blocks = args.plan.rows + (args.plan.row_capacity > 0 ? args.plan.ranks : 0);
  if (blocks == 0) return cudaSuccess;
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(blocks)),
                          .threads = kThreads,
                          .shared_bytes = sizeof(RowRecords),
                          .stream = stream};
  const int word = WordBytes({AddressOf(args.x), args.x_stride, args.row_bytes});
  if (word == 16) return Launch(DispatchPackKernel<uint4>, shape, args);
  if (word == 4) return Launch(DispatchPackKernel<uint32_t>, shape, args);
  return Launch(DispatchPackKernel<uint8_t>, shape, args);
}

cudaError_t LaunchDispatchUnpack(const DispatchUnpackLaunch& args, cudaStream_t stream) {
  return Launch(
      DispatchUnpackKernel,
      {.grid = dim3(static_cast<unsigned>(args.rows)), .threads = kThreads, .stream = stream},
      args);
}

}  // namespace baton::kernels::cuda
