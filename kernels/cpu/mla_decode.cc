// Attention in absorbed form: every head's query works on the latents themselves, which all heads
// share, so one block of latents is widened once for all of a task's rows and heads.
//
// The keys of a row are cut into splits of kSplit at absolute positions. A split's state starts
// empty and walks its key blocks in order; the states of a row's splits are folded in ascending
// order. Whether splits run side by side (few sequences) or one after the other (many) changes only
// when the folding happens, not what is folded.

#include <algorithm>
#include <vector>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rows.h"
#include "kernels/page_entry.h"

namespace baton::kernels::cpu {
namespace {

constexpr int64_t kSplit = 256;
constexpr int64_t kRowGroup = 16;   // rows of a sequence in one task
constexpr int64_t kHeadGroup = 16;  // heads in one task, at most
constexpr int64_t kMaxSplitStates = int64_t{1}
                                    << 24;  // floats kept at once when splits run side by side

struct Task {
  int64_t sequence = 0;
  int64_t row_begin = 0, row_end = 0;  // of the batch
  int64_t head_begin = 0, head_end = 0;
  int64_t first_visible = 0;  // keys that row_begin sees
  int64_t split = -1;         // -1: all of them, in order
  int64_t state = 0;          // first state of the task when splits run side by side

  int64_t rows() const { return row_end - row_begin; }
  int64_t heads() const { return head_end - head_begin; }
  int64_t items() const { return rows() * heads(); }
  int64_t keys() const { return first_visible + rows() - 1; }
};

struct Decode {
  Device& device;
  const MlaDecodeArgs& args;
  int64_t heads, kv_lora, rope, depth;  // depth: kv_lora + rope, padded
  float* q;                             // [T * heads, depth] F32: latent part, rotary part, zeros
  int64_t work = 0;                     // multiply-adds of the whole call, about

  int64_t CostOf(size_t tasks) const { return work / static_cast<int64_t>(tasks) + 1; }
};

struct Buffers {
  float* latents;            // [kKeyBlock, depth]
  float* scores;             // [items, kKeyBlock]
  AttentionState part, all;  // [items]

  static int64_t Floats(const Decode& op, int64_t items) {
    return kKeyBlock * (op.depth + items) + 2 * items * (op.kv_lora + 2);
  }
  Buffers(float* base, const Decode& op, int64_t items) {
    const auto take = [&base](int64_t count) { return std::exchange(base, base + count); };
    latents = take(kKeyBlock * op.depth);
    scores = take(kKeyBlock * items);
    for (AttentionState* state : {&part, &all}) {
      state->acc = take(items * op.kv_lora);
      state->best = take(items);
      state->sum = take(items);
      state->width = op.kv_lora;
    }
    std::fill(latents, latents + kKeyBlock * op.depth, 0.0f);
  }
};

// The query of every row and head as one vector that meets (latent, rotary key).
void JoinQueries(const Decode& op) {
  const IsaLevel isa = op.device.isa();
  const int64_t head = op.args.q.dim(2);
  ParallelFor(op.device, op.args.q.dim(0), op.heads * op.depth,
              [&](int64_t begin, int64_t end, int) {
                for (int64_t t = begin; t < end; ++t) {
                  for (int64_t i = 0; i < op.heads; ++i) {
                    float* to = op.q + (t * op.heads + i) * op.depth;
                    WidenRow(isa, op.args.q_lat, t, i * op.kv_lora, op.kv_lora, to);
                    WidenRow(isa, op.args.q, t, (i + 1) * head - op.rope, op.rope, to + op.kv_lora);
                    std::fill(to + op.kv_lora + op.rope, to + op.depth, 0.0f);
                  }
                }
              });
}

// Runs one split of the task into `state` (cleared first), item r * heads + i being row r, head i.
void RunSplit(const Decode& op, const Task& task, int64_t split, const Buffers& buffers,
              const AttentionState& state) {
  const IsaLevel isa = op.device.isa();
  const int32_t* table = op.args.batch.page_table.row<const int32_t>(task.sequence);
  const Weight latents{
      .w = TensorView::Contiguous(buffers.latents, DType::kF32, {kKeyBlock, op.depth})};
  ClearState(state, task.items());
  const int64_t end = std::min((split + 1) * kSplit, task.keys());
  for (int64_t begin = split * kSplit; begin < end; begin += kKeyBlock) {
    const int64_t count = std::min<int64_t>(kKeyBlock, end - begin);
    for (int64_t j = 0; j < count; ++j) {
      float* latent = buffers.latents + j * op.depth;
      WidenEntry(isa, op.args.pages, EntryAtPosition(op.args.pages, table, begin + j), latent,
                 latent + op.kv_lora);
    }
    for (int64_t r = 0; r < task.rows(); ++r) {
      const int64_t visible = std::min<int64_t>(kKeyBlock, task.first_visible + r - begin);
      if (visible <= 0) continue;
      const int64_t item = r * task.heads();
      GemmCall call;
      call.x = {.data = op.q, .stride = op.depth};
      call.row_begin = (task.row_begin + r) * op.heads + task.head_begin;
      call.row_end = call.row_begin + task.heads();
      call.w = &latents;
      call.n_end = count;
      call.out = buffers.scores + item * kKeyBlock;
      call.row_stride = kKeyBlock;
      Multiply(isa, call);
      AttendDecode(isa, {.scores = buffers.scores + item * kKeyBlock,
                         .items = task.heads(),
                         .visible = visible,
                         .values = buffers.latents,
                         .value_stride = op.depth,
                         .scale = op.args.softmax_scale,
                         .state = state.From(item)});
    }
  }
}

// Takes split `split` of row r into the running state; the first one is the start.
void Fold(const Decode& op, const Task& task, int64_t split, int64_t r, const AttentionState& part,
          const AttentionState& all) {
  if (split * kSplit >= task.first_visible + r) return;
  const int64_t heads = task.heads(), item = r * heads;
  const AttentionState from = part.From(item), to = all.From(item);
  if (split > 0) return FoldState(op.device.isa(), from, heads, to);
  std::copy(from.best, from.best + heads, to.best);
  std::copy(from.sum, from.sum + heads, to.sum);
  std::copy(from.acc, from.acc + heads * op.kv_lora, to.acc);
}

void WriteOut(const Decode& op, const Task& task, const AttentionState& all) {
  FinishState(op.device.isa(), all, task.items());
  for (int64_t item = 0; item < task.items(); ++item) {
    NarrowRow(op.device.isa(), all.acc + item * op.kv_lora, op.kv_lora, op.args.out,
              task.row_begin + item / task.heads(),
              (task.head_begin + item % task.heads()) * op.kv_lora);
  }
}

std::vector<Task> MakeTasks(const Decode& op) {
  const PagedBatch& batch = op.args.batch;
  const int64_t threads = op.device.pool().threads();
  const int64_t group = std::clamp<int64_t>(RoundUp(CeilDiv(op.heads, threads), 4), 4, kHeadGroup);
  const int32_t* start = batch.query_start.as<const int32_t>();
  std::vector<Task> tasks;
  for (int64_t s = 0; s < batch.context_len.dim(0); ++s) {
    const int64_t before = batch.context_len.as<const int32_t>()[s] - (start[s + 1] - start[s]);
    for (int64_t row = start[s]; row < start[s + 1]; row += kRowGroup) {
      for (int64_t head = 0; head < op.heads; head += group) {
        tasks.push_back({.sequence = s,
                         .row_begin = row,
                         .row_end = std::min<int64_t>(row + kRowGroup, start[s + 1]),
                         .head_begin = head,
                         .head_end = std::min(head + group, op.heads),
                         .first_visible = before + (row - start[s]) + 1});
      }
    }
  }
  return tasks;
}

void RunInOrder(const Decode& op, const std::vector<Task>& tasks) {
  const int64_t items = kRowGroup * std::min(kHeadGroup, op.heads);
  const int64_t per_thread = RoundUp(Buffers::Floats(op, items), 16);
  float* base = op.device.scratch().Get<float>(per_thread * op.device.pool().threads());
  ParallelFor(op.device, static_cast<int64_t>(tasks.size()), op.CostOf(tasks.size()),
              [&](int64_t begin, int64_t end, int thread) {
                const Buffers buffers(base + thread * per_thread, op, items);
                for (int64_t i = begin; i < end; ++i) {
                  const Task& task = tasks[static_cast<size_t>(i)];
                  for (int64_t split = 0; split * kSplit < task.keys(); ++split) {
                    RunSplit(op, task, split, buffers, buffers.part);
                    for (int64_t r = 0; r < task.rows(); ++r) {
                      Fold(op, task, split, r, buffers.part, buffers.all);
                    }
                  }
                  WriteOut(op, task, buffers.all);
                }
              });
}

// One task for each split; the states of a task's splits lie one after the other from task.state
// on.
void RunSideBySide(const Decode& op, const std::vector<Task>& tasks, int64_t states) {
  const int64_t items = kRowGroup * std::min(kHeadGroup, op.heads);
  const int64_t per_thread = RoundUp(Buffers::Floats(op, items), 16);
  Scratch& scratch = op.device.scratch();
  float* base = scratch.Get<float>(per_thread * op.device.pool().threads());
  AttentionState parts{scratch.Get<float>(states), scratch.Get<float>(states),
                       scratch.Get<float>(states * op.kv_lora), op.kv_lora};
  std::vector<Task> pieces;
  for (const Task& task : tasks) {
    for (int64_t split = 0; split * kSplit < task.keys(); ++split) {
      pieces.push_back(task);
      pieces.back().split = split;
      pieces.back().state = task.state + split * task.items();
    }
  }
  ParallelFor(op.device, static_cast<int64_t>(pieces.size()), op.CostOf(pieces.size()),
              [&](int64_t begin, int64_t end, int thread) {
                const Buffers buffers(base + thread * per_thread, op, items);
                for (int64_t i = begin; i < end; ++i) {
                  const Task& piece = pieces[static_cast<size_t>(i)];
                  RunSplit(op, piece, piece.split, buffers, parts.From(piece.state));
                }
              });
  for (const Task& task : tasks) {
    const AttentionState all = parts.From(task.state);
    for (int64_t split = 1; split * kSplit < task.keys(); ++split) {
      for (int64_t r = 0; r < task.rows(); ++r) {
        Fold(op, task, split, r, parts.From(task.state + split * task.items()), all);
      }
    }
    WriteOut(op, task, all);
  }
}

}  // namespace

absl::Status MlaDecode(Device& device, const MlaDecodeArgs& args) {
  Decode op{.device = device, .args = args, .heads = args.q.dim(1)};
  op.kv_lora = args.pages.kv_lora;
  op.rope = args.pages.rope;
  op.depth = PaddedDepth(op.kv_lora + op.rope);
  device.scratch().Reset();
  op.q = device.scratch().Get<float>(args.q.dim(0) * op.heads * op.depth);
  JoinQueries(op);
  std::vector<Task> tasks = MakeTasks(op);
  int64_t states = 0;
  for (Task& task : tasks) {
    task.state = states;
    states += CeilDiv(task.keys(), kSplit) * task.items();
    op.work += task.items() * task.keys() * 2 * op.depth;
  }
  const bool enough = static_cast<int64_t>(tasks.size()) >= 2 * device.pool().threads();
  if (enough || device.pool().threads() == 1 || states * op.kv_lora > kMaxSplitStates) {
    RunInOrder(op, tasks);
  } else {
    RunSideBySide(op, tasks, states);
  }
  return absl::OkStatus();
}

}  // namespace baton::kernels::cpu
