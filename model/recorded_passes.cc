#include "model/recorded_passes.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "base/status_macros.h"

namespace baton::model {
namespace {

int32_t RoundUp(int32_t value, int32_t step) { return (value + step - 1) / step * step; }

int32_t PaddedRows(int32_t rows) {
  if (rows <= 8) return static_cast<int32_t>(std::bit_ceil(static_cast<uint32_t>(rows)));
  if (rows <= 64) return RoundUp(rows, 8);
  return RoundUp(rows, rows <= 256 ? 32 : 128);
}

}  // namespace

PassShape PaddedShape(const PassShape& pass, const PassShape& limits) {
  const uint32_t width = std::bit_ceil(static_cast<uint32_t>(pass.sequence_pages));
  return {.rows = std::min(PaddedRows(pass.rows), limits.rows),
          .sequence_pages = std::min(static_cast<int32_t>(width), limits.sequence_pages)};
}

RecordedPasses::Entry& RecordedPasses::EntryOf(const PassShape& shape) {
  if (entries_.size() == kMostShapes && !entries_.contains(shape)) {
    entries_.erase(std::min_element(entries_.begin(), entries_.end(), [](auto& a, auto& b) {
      return a.second.last_use < b.second.last_use;
    }));
  }
  Entry& entry = entries_[shape];
  entry.last_use = ++uses_;
  return entry;
}

absl::Status RecordedPasses::Run(const PassShape& shape, absl::FunctionRef<absl::Status()> launch) {
  Entry& entry = EntryOf(shape);
  // Run once as they are, the ops have all the working memory that they need.
  if (!std::exchange(entry.has_run, true) || entry.refused) return launch();
  if (entry.recording == nullptr) BATON_RETURN_IF_ERROR(Record(entry, launch));
  if (entry.refused) return launch();
  absl::Status status = device_.Replay(*entry.recording);
  if (absl::IsFailedPrecondition(status)) {
    entry.recording = nullptr;
    return launch();  // the next one is recorded anew
  }
  if (status.ok()) ++replays_;
  return status;
}

// An error only where the device is at fault.
absl::Status RecordedPasses::Record(Entry& entry, absl::FunctionRef<absl::Status()> launch) {
  BATON_RETURN_IF_ERROR(device_.BeginRecording());
  const absl::Status launched = launch();
  absl::StatusOr<std::unique_ptr<kernels::Recording>> recording = device_.EndRecording();
  if (launched.ok() && recording.ok()) {
    entry.recording = *std::move(recording);
    return absl::OkStatus();
  }
  entry.refused = true;
  return absl::OkStatus();
}

}  // namespace baton::model
