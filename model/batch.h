#ifndef BATON_MODEL_BATCH_H_
#define BATON_MODEL_BATCH_H_

// A BatchPlan as flat index arrays on the host: the last step before the device. Pure.

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "scheduler/types.h"

namespace baton::model {

// What a plan may refer to.
struct PlanLimits {
  int32_t max_rows = 0;
  int32_t max_positions = 0;
  int32_t page_tokens = 0;
  int32_t total_pages = 0;
  int32_t vocab_size = 0;
};

// INVALID_ARGUMENT that names the request, the value and the range when the slice cannot be run: a
// bug of a planner, or of whoever checks requests.
absl::Status CheckSlice(const scheduler::SequenceSlice& slice, const PlanLimits& limits);

// The first slice's error, or INVALID_ARGUMENT when the plan as a whole cannot be run.
absl::Status CheckPlan(const scheduler::BatchPlan& plan, const PlanLimits& limits);

// Reused from pass to pass, so that a steady state allocates nothing.
struct Batch {
  scheduler::Form form = scheduler::Form::kPrefill;
  int32_t rows = 0;
  int32_t sequences = 0;
  int32_t sequence_pages = 0;        // width of page_table: pages of the longest context
  std::vector<int32_t> ids;          // [rows]
  std::vector<int32_t> positions;    // [rows]
  std::vector<int64_t> slots;        // [rows]: page id * page_tokens + offset
  std::vector<int32_t> query_start;  // [sequences + 1]
  std::vector<int32_t> context_len;  // [sequences]
  std::vector<int32_t> page_table;   // [sequences, sequence_pages], padded with 0
};

// Fills `batch` from a plan that CheckPlan passed.
void BuildBatch(const scheduler::BatchPlan& plan, int32_t page_tokens, Batch& batch);

// Pads a batch whose sequences have a row each (at least one of them) to `rows` rows and a page
// table `sequence_pages` wide, neither less than it has. The rows behind repeat the first, which
// costs no expert that is not read anyway, but write no latents: their slots are -1.
void PadBatch(int32_t rows, int32_t sequence_pages, Batch& batch);

}  // namespace baton::model

#endif  // BATON_MODEL_BATCH_H_
