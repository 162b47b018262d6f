#ifndef BATON_MODEL_EXPERT_PREFETCH_H_
#define BATON_MODEL_EXPERT_PREFETCH_H_

// Where weights are used in the files that are mapped, the copy of an expert is its way from the
// disk into memory: afterwards no pass waits for it. Any thread.

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "kernels/ops.h"

namespace baton::model {

// Reads the pages of mapped bytes in. DATA_LOSS when they are not there any more.
absl::Status ReadIn(const char* data, int64_t bytes);

// Of the values and the scales.
int64_t WeightBytes(const kernels::Weight& weight);

// Reads all of a weight's pages in, in pieces of at most a MiB, and sees that they are there.
// may_go_on and errors as ExpertHost::Copy.
absl::Status Prefetch(const kernels::Weight& weight,
                      absl::FunctionRef<bool(int64_t bytes)> may_go_on);

}  // namespace baton::model

#endif  // BATON_MODEL_EXPERT_PREFETCH_H_
