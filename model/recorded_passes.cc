#include "model/recorded_passes.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "base/status_macros.h"

namespace baton::model {
namespace {

int32_t RoundUp(int32_t value, int32_t step) { return (value + step - 1) / step * step; }

int32_t PaddedRows(int32_t rows) {
  if (rows == 0) return 0;
  if (rows <= 8) return static_cast<int32_t>(std::bit_ceil(static_cast<uint32_t>(rows)));
  if (rows <= 64) return RoundUp(rows, 8);
  return RoundUp(rows, rows <= 256 ? 32 : 128);
}

}  // namespace

PassShape PaddedShape(const PassShape& pass, const PassShape& limits) {
  const uint32_t width =
      pass.sequence_pages == 0 ? 0 : std::bit_ceil(static_cast<uint32_t>(pass.sequence_pages));
  return {.rows = std::min(PaddedRows(pass.rows), limits.rows),
          .sequence_pages = std::min(static_cast<int32_t>(width), limits.sequence_pages),
          .room_rows = pass.room_rows,
          .room_pairs = pass.room_pairs};
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
  if (entry.pieces.empty()) BATON_RETURN_IF_ERROR(Record(entry, launch));
  if (entry.refused) return launch();
  absl::Status status = device_.Replay(*entry.pieces.front().ops);
  if (absl::IsFailedPrecondition(status)) {
    entry.pieces.clear();
    return launch();  // the next one is recorded anew
  }
  if (status.ok()) status = GoOn(entry);
  if (status.ok()) ++replays_;
  return status;
}

// Behind the first ops.
absl::Status RecordedPasses::GoOn(const Entry& entry) {
  for (size_t i = 1; i < entry.pieces.size(); ++i) {
    BATON_RETURN_IF_ERROR(entry.pieces[i - 1].call());
    BATON_RETURN_IF_ERROR(device_.Replay(*entry.pieces[i].ops));
  }
  return absl::OkStatus();
}

absl::Status RecordedPasses::Call(GroupCall call) {
  if (pieces_ == nullptr) return call();
  BATON_RETURN_IF_ERROR(EndPiece(std::move(call)));
  return BeginPiece();
}

absl::Status RecordedPasses::BeginPiece() {
  BATON_RETURN_IF_ERROR(device_.BeginRecording());
  in_piece_ = true;
  return absl::OkStatus();
}

absl::Status RecordedPasses::EndPiece(GroupCall call) {
  in_piece_ = false;
  BATON_ASSIGN_OR_RETURN(std::unique_ptr<kernels::Recording> ops, device_.EndRecording());
  pieces_->push_back({.ops = std::move(ops), .call = std::move(call)});
  return absl::OkStatus();
}

// An error only where the device is at fault.
absl::Status RecordedPasses::Record(Entry& entry, absl::FunctionRef<absl::Status()> launch) {
  BATON_RETURN_IF_ERROR(BeginPiece());
  pieces_ = &entry.pieces;
  absl::Status recorded = launch();
  if (recorded.ok()) recorded = EndPiece({});
  if (in_piece_) EndPiece({}).IgnoreError();
  pieces_ = nullptr;
  if (recorded.ok()) return absl::OkStatus();
  entry.pieces.clear();
  entry.refused = true;
  return absl::OkStatus();
}

}  // namespace baton::model
