#include "kernels/cpu/gemm.h"

#include <vector>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd_base.h"

#define BATON_ISA_FILE "kernels/cpu/gemm_isa.h"
#include "kernels/cpu/foreach_isa.h"

namespace baton::kernels::cpu {
namespace {

// Rows of one task: bounds the tile buffer and lets long batches spread over threads when N is
// small.
constexpr int64_t kRowBlock = 128;

void PackRow(IsaLevel isa, const TensorView& x, int64_t t, bool bf16, void* out) {
  BATON_ISA_CALL(isa, PackRow(x, t, bf16, out));
}

void FinishTo(IsaLevel isa, Epilogue epilogue, const float* a, const float* b, int64_t n,
              const TensorView& out, int64_t row, int64_t column) {
  BATON_ISA_CALL(isa, FinishTo(epilogue, a, b, n, out, row, column));
}

struct Buffers {
  float* widened;
  float* tile;  // [kRowBlock, kColumnTile]
  float* tile2;
};

// One block of rows by one tile of columns of one job.
void RunTask(IsaLevel isa, const GemmJob& job, int64_t row, int64_t column, Epilogue epilogue,
             const Buffers& buffers) {
  GemmCall call{.x = job.x, .row_begin = row, .row_end = std::min(row + kRowBlock, job.row_end)};
  call.w = job.w;
  call.n_begin = job.n_begin + column;
  call.n_end = std::min(call.n_begin + kColumnTile, job.n_end);
  call.widened = buffers.widened;
  call.out = buffers.tile;
  call.row_stride = kColumnTile;
  Multiply(isa, call);
  if (epilogue == Epilogue::kSiluMul) {
    call.w = job.w2;
    call.out = buffers.tile2;
    Multiply(isa, call);
  }
  const int64_t columns = call.n_end - call.n_begin;
  for (int64_t r = call.row_begin; r < call.row_end; ++r) {
    const int64_t at = (r - call.row_begin) * kColumnTile;
    FinishTo(isa, epilogue, buffers.tile + at, buffers.tile2 + at, columns, job.out, r, column);
  }
}

}  // namespace

void Multiply(IsaLevel isa, const GemmCall& call) { BATON_ISA_CALL(isa, Multiply(call)); }

bool UsesBf16(IsaLevel isa, DType activations, DType weights) {
  return isa == IsaLevel::kAvx512Bf16 && activations != DType::kF32 && weights != DType::kF32;
}

GemmRows PrepareRows(Device& device, const TensorView& x, DType weights, const TensorView& scales) {
  const int64_t rows = x.dim(0), depth = x.dim(1), padded = PaddedDepth(depth);
  GemmRows result;
  result.bf16 = UsesBf16(device.isa(), x.dtype, weights);
  if (!scales.absent()) {
    result.scales = scales.as<const float>();
    result.scale_stride = scales.strides[0];
  }
  const DType element = result.bf16 ? DType::kBF16 : DType::kF32;
  if (x.dtype == element && depth == padded) {
    result.data = x.data;
    result.stride = x.strides[0];
    return result;
  }
  const int64_t bytes = padded * (result.bf16 ? 2 : 4);
  uint8_t* packed = device.scratch().Get<uint8_t>(rows * bytes);
  const auto pack = [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      PackRow(device.isa(), x, t, result.bf16, packed + t * bytes);
    }
  };
  ParallelFor(device, rows, depth, pack);
  result.data = packed;
  result.stride = padded;
  return result;
}

void RunGemm(Device& device, absl::Span<const GemmJob> jobs, Epilogue epilogue) {
  // Tasks are numbered job by job, column tile by column tile, then by blocks of rows: neighbours
  // share weights.
  std::vector<int64_t> first_task(jobs.size() + 1, 0);
  int64_t work = 0, depth = 0;
  for (size_t j = 0; j < jobs.size(); ++j) {
    const int64_t rows = jobs[j].row_end - jobs[j].row_begin;
    const int64_t columns = jobs[j].n_end - jobs[j].n_begin;
    depth = jobs[j].w->w.dim(1);
    work += rows * columns * depth * (epilogue == Epilogue::kSiluMul ? 2 : 1);
    first_task[j + 1] = first_task[j] + CeilDiv(rows, kRowBlock) * CeilDiv(columns, kColumnTile);
  }
  const int64_t per_thread = kColumnTile * (PaddedDepth(depth) + 2 * kRowBlock);
  float* buffers = device.scratch().Get<float>(per_thread * device.pool().threads());
  const auto run = [&](int64_t begin, int64_t end, int thread) {
    Buffers own{.widened = buffers + thread * per_thread};
    own.tile = own.widened + kColumnTile * PaddedDepth(depth);
    own.tile2 = own.tile + kRowBlock * kColumnTile;
    size_t j = 0;
    for (int64_t task = begin; task < end; ++task) {
      while (task >= first_task[j + 1]) ++j;
      const GemmJob& job = jobs[j];
      const int64_t row_blocks = CeilDiv(job.row_end - job.row_begin, kRowBlock);
      const int64_t local = task - first_task[j];
      RunTask(device.isa(), job, job.row_begin + local % row_blocks * kRowBlock,
              local / row_blocks * kColumnTile, epilogue, own);
    }
  };
  const int64_t tasks = first_task.back();
  ParallelFor(device, tasks, tasks == 0 ? 0 : CeilDiv(work, tasks), run);
}

}  // namespace baton::kernels::cpu
