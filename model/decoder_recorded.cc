// Passes of a decoder that are recorded: which ones, in what shape, and until when.

#include <algorithm>
#include <utility>

#include "model/decoder.h"

namespace baton::model {

// Whether the ops of the pass depend on nothing but its shape: where the host takes no part in it.
// In a group the hosts agree on nothing within a pass in room, and a rank without rows takes part.
bool Decoder::IsRecordable(const scheduler::BatchPlan& plan, const LayerObserver* observer) const {
  if (recorded_ == nullptr || observer != nullptr || !AllRowsFinish()) return false;
  if (!options_.group.solo() && !in_room_) return false;
  if (plan.total_rows == 0) return in_room_;
  return plan.form == scheduler::Form::kDecode &&
         plan.slices.size() == static_cast<size_t>(plan.total_rows);
}

PassShape Decoder::PadPlan() {
  Part& whole = parts_[0];
  const int32_t page_tokens = cache_.page_tokens();
  PassShape limits{.rows = options_.max_rows,
                   .sequence_pages = (plan_limits_.max_positions + page_tokens - 1) / page_tokens};
  if (in_room_) limits.rows = std::min(limits.rows, room_.rows);
  const PassShape shape = PaddedShape({.rows = whole.batch.rows,
                                       .sequence_pages = whole.batch.sequence_pages,
                                       .room_rows = in_room_ ? room_.rows : 0,
                                       .room_pairs = in_room_ ? room_.pairs : 0},
                                      limits);
  if (shape.rows == 0) return shape;
  PadBatch(shape.rows, shape.sequence_pages, whole.batch);
  whole.own = OwnRows(shape.rows);
  whole.a = activations_.ForRows(shape.rows, whole.own);
  return shape;
}

// What was recorded is of no use where the buffers of messages have moved.
absl::Status Decoder::RunRecorded(const PassShape& shape,
                                  absl::FunctionRef<absl::Status()> launch) {
  ExpertExchange* const exchange = exchanges_[0].get();
  if (exchange != nullptr) {
    exchange->UseRecorder(recorded_.get());
    if (std::exchange(exchange_moves_, exchange->moves()) != exchange->moves()) {
      recorded_->Forget();
    }
  }
  return recorded_->Run(shape, launch);
}

}  // namespace baton::model
