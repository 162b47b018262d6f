#ifndef BATON_MODEL_EXPERT_HOST_H_
#define BATON_MODEL_EXPERT_HOST_H_

// One rank's experts as seen by whoever places them: where they lie, how often they were chosen,
// and how one is brought to a slot. A Runner of an expert-parallel group offers it
// (Runner::experts()). The loop's thread calls all but BeginCopies and Copy.

#include <cstdint>
#include <span>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "scheduler/expert_placement.h"
#include "scheduler/expert_switch.h"

namespace baton::model {

class ExpertHost {
 public:
  virtual ~ExpertHost() = default;

  // Of the model, in this group, with the slots that the group was configured for.
  virtual scheduler::ExpertTopology topology() const = 0;

  // Where the experts lie from the next pass on; the same on all ranks of a pass. On a live rank
  // the experts of its slots are there, in use or by Copy. INVALID_ARGUMENT or FAILED_PRECONDITION
  // as ExpertTables::Create; nothing changes then.
  virtual absl::Status Install(const scheduler::ActiveExperts& active) = 0;

  // How this rank goes about its passes, for people; the same on all ranks of a group.
  virtual std::string pass_settings() const = 0;
  // Before each pass, with the number of rows that the rank with the most has in it.
  virtual void BeginStep(int32_t most_rows) = 0;

  // Adds how often this rank's rows have chosen each expert since the last call to `counts`,
  // [layers, experts], and begins anew.
  virtual void TakeChoices(std::span<int32_t> counts) = 0;

  // A new placement is to be prepared: what Copy has brought and Install has not taken over is not
  // wanted any more. The thread that calls Copy.
  virtual void BeginCopies() = 0;

  // Bytes that Copy moves for one expert of a layer.
  virtual int64_t ExpertBytes(int32_t layer, int32_t expert) const = 0;

  // Brings an expert's weights to where passes can use them at once, beside those in use; may take
  // long. `may_go_on` is asked before each piece of so many bytes: it may wait, and false ends the
  // copy with CANCELLED. DATA_LOSS when the weights are not there any more, RESOURCE_EXHAUSTED when
  // the device has no place left beside those in use. Any thread, one at a time, also while passes
  // run.
  virtual absl::Status Copy(const scheduler::ExpertCopy& copy,
                            absl::FunctionRef<bool(int64_t bytes)> may_go_on) = 0;
};

}  // namespace baton::model

#endif  // BATON_MODEL_EXPERT_HOST_H_
