// Attention in MHA form. One task is one head of up to kQueryBlock rows of one sequence: it walks
// the key blocks from position 0, expands each block's keys (transposed) and values from the
// latents in the pages, and feeds it to every row. The blocks, and the order of every sum in them,
// depend on absolute positions only, so chunking cannot change a bit.

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

constexpr int64_t kQueryBlock =
    1024;  // bounds the state of a task; more rows expand the keys again

struct Task {
  int64_t sequence = 0, head = 0;
  int64_t row_begin = 0, row_end = 0;  // of the batch
  int64_t first_visible = 0;           // keys that row_begin sees
};

struct Shape {
  int64_t heads, head, nope, rope, v, v_padded, kv_lora, latent_stride;
};

struct Buffers {
  float *latents, *keys, *values, *widened, *scores;
  AttentionState state;

  static int64_t Floats(const Shape& shape, int64_t rows) {
    return kKeyBlock * (shape.latent_stride + shape.head + shape.v_padded + 4) +
           kColumnTile * shape.latent_stride + rows * (shape.v_padded + 2);
  }
  Buffers(float* base, const Shape& shape, int64_t rows) {
    const auto take = [&base](int64_t count) { return std::exchange(base, base + count); };
    latents = take(kKeyBlock * shape.latent_stride);
    keys = take(kKeyBlock * shape.head);
    values = take(kKeyBlock * shape.v_padded);
    scores = take(kKeyBlock * 4);
    widened = take(kColumnTile * shape.latent_stride);
    state.acc = take(rows * shape.v_padded);
    state.best = take(rows);
    state.sum = take(rows);
    state.width = shape.v_padded;
    // Padding of latents, and the columns of values that no head dimension fills.
    std::fill(latents, latents + kKeyBlock * shape.latent_stride, 0.0f);
    std::fill(values, values + kKeyBlock * shape.v_padded, 0.0f);
  }
};

// Keys and values of positions [begin, begin + count) of the sequence for one head.
void ExpandBlock(IsaLevel isa, const MlaPrefillArgs& args, const Shape& shape, const Task& task,
                 int64_t begin, int64_t count, const Buffers& buffers) {
  const int32_t* table = args.batch.page_table.row<const int32_t>(task.sequence);
  float rotary[256];
  for (int64_t j = 0; j < count; ++j) {
    WidenEntry(isa, args.pages, EntryAtPosition(args.pages, table, begin + j),
               buffers.latents + j * shape.latent_stride, rotary);
    for (int64_t d = 0; d < shape.rope; ++d) {
      buffers.keys[(shape.nope + d) * kKeyBlock + j] = rotary[d];
    }
  }
  GemmCall call;
  call.x = {.data = buffers.latents, .stride = shape.latent_stride};
  call.row_end = count;
  call.w = &args.kv_b;
  call.n_begin = task.head * (shape.nope + shape.v);
  call.n_end = call.n_begin + shape.nope;
  call.widened = buffers.widened;
  call.out = buffers.keys;
  call.row_stride = 1;
  call.column_stride = kKeyBlock;
  Multiply(isa, call);
  call.n_begin = call.n_end;
  call.n_end += shape.v;
  call.out = buffers.values;
  call.row_stride = shape.v_padded;
  call.column_stride = 1;
  Multiply(isa, call);
}

void RunTask(IsaLevel isa, const MlaPrefillArgs& args, const Shape& shape, const GemmRows& q,
             const Task& task, const Buffers& buffers) {
  const int64_t rows = task.row_end - task.row_begin;
  const int64_t keys = task.first_visible + rows - 1;
  ClearState(buffers.state, rows);
  PrefillBlock block;
  block.q = static_cast<const float*>(q.data) + task.row_begin * q.stride + task.head * shape.head;
  block.q_stride = q.stride;
  block.rows = rows;
  block.depth = shape.head;
  block.keys = buffers.keys;
  block.values = buffers.values;
  block.scale = args.softmax_scale;
  block.state = buffers.state;
  block.scores = buffers.scores;
  for (int64_t begin = 0; begin < keys; begin += kKeyBlock) {
    ExpandBlock(isa, args, shape, task, begin, std::min<int64_t>(kKeyBlock, keys - begin), buffers);
    block.first_visible = task.first_visible - begin;
    AttendPrefill(isa, block);
  }
  FinishState(isa, buffers.state, rows);
  for (int64_t r = 0; r < rows; ++r) {
    NarrowRow(isa, buffers.state.acc + r * shape.v_padded, shape.v, args.out, task.row_begin + r,
              task.head * shape.v);
  }
}

std::vector<Task> MakeTasks(const PagedBatch& batch, int64_t heads) {
  std::vector<Task> tasks;
  const int32_t* start = batch.query_start.as<const int32_t>();
  for (int64_t s = 0; s < batch.context_len.dim(0); ++s) {
    const int64_t before = batch.context_len.as<const int32_t>()[s] - (start[s + 1] - start[s]);
    for (int64_t row = start[s]; row < start[s + 1]; row += kQueryBlock) {
      for (int64_t head = 0; head < heads; ++head) {
        tasks.push_back({.sequence = s,
                         .head = head,
                         .row_begin = row,
                         .row_end = std::min<int64_t>(row + kQueryBlock, start[s + 1]),
                         .first_visible = before + (row - start[s]) + 1});
      }
    }
  }
  return tasks;
}

}  // namespace

absl::Status MlaPrefill(Device& device, const MlaPrefillArgs& args) {
  Shape shape;
  shape.heads = args.q.dim(1);
  shape.head = args.q.dim(2);
  shape.rope = args.pages.rope;
  shape.nope = shape.head - shape.rope;
  shape.v = args.out.dim(2);
  shape.v_padded = RoundUp(shape.v, 16);
  shape.kv_lora = args.pages.kv_lora;
  shape.latent_stride = PaddedDepth(shape.kv_lora);
  Scratch& scratch = device.scratch();
  scratch.Reset();
  // Products with F32 weights: q as F32 rows, whatever its dtype.
  const GemmRows q =
      PrepareRows(device, args.q.Reshape({args.q.dim(0), shape.heads * shape.head}), DType::kF32);
  const std::vector<Task> tasks = MakeTasks(args.batch, shape.heads);
  const int64_t rows = std::min(kQueryBlock, args.q.dim(0));
  const int64_t per_thread = RoundUp(Buffers::Floats(shape, rows), 16);
  float* base = scratch.Get<float>(per_thread * device.pool().threads());
  const auto run = [&](int64_t begin, int64_t end, int thread) {
    const Buffers buffers(base + thread * per_thread, shape, rows);
    for (int64_t i = begin; i < end; ++i) {
      RunTask(device.isa(), args, shape, q, tasks[static_cast<size_t>(i)], buffers);
    }
  };
  const Task& last = tasks.back();
  const int64_t keys = last.first_visible + (last.row_end - last.row_begin) - 1;
  const int64_t cost = keys * (shape.nope + shape.v) * (shape.kv_lora + rows);
  ParallelFor(device, static_cast<int64_t>(tasks.size()), cost, run);
  return absl::OkStatus();
}

}  // namespace baton::kernels::cpu
