#ifndef BATON_MODEL_RECORDED_PASSES_H_
#define BATON_MODEL_RECORDED_PASSES_H_

// Passes whose ops are recorded once and then run by one call, where the device can: a decode step
// of a large model is more than a thousand small ops, and calling them takes longer than running
// them. A recording fits one shape of pass: so many rows, so wide a page table. Passes are padded
// to one of few shapes, so that each is soon recorded. One thread, the decoder's.
//
// In a group the ranks' calls stay calls, between one piece of recorded ops and the next. NCCL's
// calls could be recorded too, but then all ranks would have to record and replay the same passes
// at the same time, and a communicator that is aborted waits for the graphs that its calls are in.

#include <compare>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "kernels/backend.h"

namespace baton::model {

struct PassShape {
  int32_t rows = 0;
  int32_t sequence_pages = 0;  // width of the page table
  int32_t room_rows = 0;       // in a group's messages (ExpertExchange::Room)
  int32_t room_pairs = 0;
  auto operator<=>(const PassShape&) const = default;
};

// The shape to pad a pass to: rows as in 1, 2, 4, 8, 16, 24 .. 64, 96 .. 256, 384 .., the width a
// power of two; neither above its limit, which is at least the pass's own. A pass without rows, of
// an idle rank, stays so. The room is as it is.
PassShape PaddedShape(const PassShape& pass, const PassShape& limits);

class RecordedPasses {
 public:
  // Shapes remembered; the one that was not used for longest makes room.
  static constexpr size_t kMostShapes = 32;

  // `device` outlives it, and can_record().
  explicit RecordedPasses(kernels::Device& device) : device_(device) {}

  // Runs a pass of this shape. `launch` calls its ops, the same with the same arguments each time
  // for a shape until Forget, and nothing else of the device: the first time it runs them, the
  // second time it is recorded, and from then on not called. Its error, or the device's.
  absl::Status Run(const PassShape& shape, absl::FunctionRef<absl::Status()> launch);
  // For what `launch` does beside ops, in their order: a call of the group, which stands in the
  // device's queue when it returns. Recorded, it is made in each run, so it refers to nothing that
  // goes before Forget.
  using GroupCall = std::function<absl::Status()>;
  absl::Status Call(GroupCall call);
  // Nothing may wait for the device now.
  bool is_recording() const { return pieces_ != nullptr; }
  // What the ops are called with has changed.
  void Forget() { entries_.clear(); }

  uint64_t replays() const { return replays_; }

 private:
  struct Piece {
    std::unique_ptr<kernels::Recording> ops;
    GroupCall call;  // behind them; empty behind the last ones
  };
  struct Entry {
    std::vector<Piece> pieces;  // empty: not recorded
    bool has_run = false;
    bool refused = false;  // recording failed: run as it is
    uint64_t last_use = 0;
  };
  absl::Status Record(Entry& entry, absl::FunctionRef<absl::Status()> launch);
  absl::Status BeginPiece();
  absl::Status EndPiece(GroupCall call);
  absl::Status GoOn(const Entry& entry);
  Entry& EntryOf(const PassShape& shape);

  kernels::Device& device_;
  std::map<PassShape, Entry> entries_;
  std::vector<Piece>* pieces_ = nullptr;  // of the recording in progress
  bool in_piece_ = false;                 // the device records
  uint64_t uses_ = 0;
  uint64_t replays_ = 0;
};

}  // namespace baton::model

#endif  // BATON_MODEL_RECORDED_PASSES_H_
