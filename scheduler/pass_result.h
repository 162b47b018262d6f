#ifndef BATON_SCHEDULER_PASS_RESULT_H_
#define BATON_SCHEDULER_PASS_RESULT_H_

// Reads what a pass gave, slice by slice in the order of its plan. Pure; for the two planners.

#include <algorithm>
#include <cstddef>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "scheduler/step.h"

namespace baton::scheduler {

class PassResult {
 public:
  // `pass`: the plan's slices in order, anything with `key` and `sample`. Keeps a reference to
  // `event` alone. A result that lacks tokens, or has too many, is a failure of the whole pass.
  template <typename Slices>
  PassResult(const PassFinished& event, const Slices& pass)
      : output_(event.output), status_(event.status) {
    if (!status_.ok()) return;
    size_t wanted = 0;
    for (const auto& slice : pass) {
      wanted += slice.sample && FailureOf(slice.key) == nullptr ? 1 : 0;
    }
    if (output_.tokens.size() == wanted) return;
    status_ = absl::InternalError(absl::StrCat("the pass gave ", output_.tokens.size(),
                                               " tokens where ", wanted, " were asked for"));
  }

  struct Slice {
    absl::Status status;                  // not OK: it failed, alone or with the pass
    const SampledToken* token = nullptr;  // set when it was to be sampled and did not fail
  };
  // Of the next slice; to be called for each slice of the pass, in order.
  template <typename PassSlice>
  Slice Next(const PassSlice& slice) {
    if (!status_.ok()) return {status_, nullptr};
    if (const SliceFailure* failure = FailureOf(slice.key)) return {failure->status, nullptr};
    return {absl::OkStatus(), slice.sample ? &output_.tokens[next_++] : nullptr};
  }

 private:
  const SliceFailure* FailureOf(RequestKey key) const {
    const auto it = std::find_if(output_.failures.begin(), output_.failures.end(),
                                 [key](const SliceFailure& f) { return f.key == key; });
    return it == output_.failures.end() ? nullptr : &*it;
  }

  const StepOutput& output_;
  absl::Status status_;
  size_t next_ = 0;
};

}  // namespace baton::scheduler

#endif  // BATON_SCHEDULER_PASS_RESULT_H_
