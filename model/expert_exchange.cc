#include "model/expert_exchange.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"

namespace baton::model {
namespace {

using kernels::DType;
using kernels::TensorView;

constexpr int64_t kRecordAlignment = 16;  // bytes, so that every row of a message is well aligned

int64_t RecordBytes(const ExpertExchange::Shape& shape) {
  const int64_t bytes = shape.hidden * static_cast<int64_t>(kernels::DTypeBytes(shape.act)) +
                        shape.choices * static_cast<int64_t>(sizeof(int32_t));
  return (bytes + kRecordAlignment - 1) / kRecordAlignment * kRecordAlignment;
}

}  // namespace

absl::Status ExpertExchange::Buffer::Reserve(kernels::Device& device, size_t bytes) {
  if (bytes <= buffer_.bytes()) return absl::OkStatus();
  buffer_ = {};  // before the larger one comes
  // Some room to spare, so that slowly growing batches do not allocate every time.
  BATON_ASSIGN_OR_RETURN(buffer_, device.Allocate(bytes + bytes / 4));
  return absl::OkStatus();
}

ExpertExchange::ExpertExchange(kernels::Device& device, const RankGroup& group, const Shape& shape)
    : device_(device),
      group_(group),
      shape_(shape),
      row_bytes_(shape.hidden * static_cast<int64_t>(kernels::DTypeBytes(shape.act))),
      record_bytes_(RecordBytes(shape)),
      sent_(static_cast<size_t>(group.ranks())),
      all_counts_(static_cast<size_t>(group.ranks()) * static_cast<size_t>(group.ranks())),
      received_(static_cast<size_t>(group.ranks())),
      send_bytes_(static_cast<size_t>(group.ranks())),
      receive_bytes_(static_cast<size_t>(group.ranks())) {}

absl::StatusOr<std::unique_ptr<ExpertExchange>> ExpertExchange::Create(kernels::Device& device,
                                                                       const RankGroup& group,
                                                                       const Shape& shape) {
  BATON_CHECK(!group.solo());
  if (!device.host_memory()) {
    return absl::FailedPreconditionError(
        "rows of this backend's memory cannot be sent to other ranks; use the cpu backend");
  }
  return std::unique_ptr<ExpertExchange>(new ExpertExchange(device, group, shape));
}

TensorView ExpertExchange::View(const Buffer& buffer, DType dtype,
                                std::initializer_list<int64_t> shape) const {
  return TensorView::Contiguous(buffer.data(), dtype, shape);
}

TensorView ExpertExchange::x() const {
  TensorView view = View(records_, shape_.act, {rows_, shape_.hidden});
  view.strides[0] = record_bytes_ / static_cast<int64_t>(kernels::DTypeBytes(shape_.act));
  return view;
}
TensorView ExpertExchange::slots() const {
  return View(slots_, DType::kI32, {rows_, shape_.choices});
}
TensorView ExpertExchange::offsets() const {
  return View(offsets_, DType::kI32, {slots_per_rank_ + 1});
}
TensorView ExpertExchange::row_tokens() const {
  return View(row_tokens_, DType::kI32, {rows_ * shape_.choices});
}
TensorView ExpertExchange::pair_rows() const {
  return View(pair_rows_, DType::kI32, {rows_, shape_.choices});
}
TensorView ExpertExchange::inner() const {
  return View(inner_, shape_.act, {pairs_, shape_.inner});
}
TensorView ExpertExchange::outputs() const {
  return View(outputs_, shape_.act, {pairs_, shape_.hidden});
}
TensorView ExpertExchange::home_outputs() const {
  return View(home_outputs_, shape_.act, {home_row_count_ * shape_.choices, shape_.hidden});
}
TensorView ExpertExchange::home_rows() const {
  return View(home_rows_, DType::kI32, {home_row_count_, shape_.choices});
}

// Which rows go where, and where their outputs will stand when they come home: rank after rank, row
// after row, choice after choice.
absl::Status ExpertExchange::Plan(const TensorView& physical) {
  const int32_t choices = shape_.choices;
  home_row_count_ = physical.dim(0);
  const size_t pairs = static_cast<size_t>(home_row_count_ * choices);
  BATON_RETURN_IF_ERROR(home_rows_.Reserve(device_, pairs * sizeof(int32_t)));
  int32_t* const home = reinterpret_cast<int32_t*>(home_rows_.data());
  sent_rows_.clear();
  sent_slots_.clear();
  int32_t next_home = 0;
  for (int32_t rank = 0; rank < group_.ranks(); ++rank) {
    Counts& counts = sent_[static_cast<size_t>(rank)];
    counts = {};
    for (int64_t t = 0; t < home_row_count_; ++t) {
      const int32_t* row = physical.row<const int32_t>(t);
      bool goes = false;
      for (int32_t c = 0; c < choices; ++c) goes |= row[c] / slots_per_rank_ == rank;
      if (!goes) continue;
      ++counts.rows;
      sent_rows_.push_back(static_cast<int32_t>(t));
      for (int32_t c = 0; c < choices; ++c) {
        const bool there = row[c] / slots_per_rank_ == rank;
        sent_slots_.push_back(there ? row[c] % slots_per_rank_ : slots_per_rank_);
        if (!there) continue;
        home[t * choices + c] = next_home++;
        ++counts.pairs;
      }
    }
  }
  return absl::OkStatus();
}

absl::Status ExpertExchange::ExchangeCounts() {
  const size_t ranks = sent_.size();
  BATON_RETURN_IF_ERROR(group_.collectives->AllGather(
      std::as_bytes(std::span(sent_)), std::as_writable_bytes(std::span(all_counts_)),
      group_.timeout));
  rows_ = 0;
  pairs_ = 0;
  for (size_t from = 0; from < ranks; ++from) {
    received_[from] = all_counts_[from * ranks + static_cast<size_t>(group_.rank())];
    if (received_[from].rows < 0 || received_[from].pairs < received_[from].rows) {
      return absl::InternalError("a rank of the group announced row counts that cannot be");
    }
    rows_ += received_[from].rows;
    pairs_ += received_[from].pairs;
  }
  return absl::OkStatus();
}

absl::Status ExpertExchange::ReserveForReceived() {
  const size_t rows = static_cast<size_t>(rows_), pairs = static_cast<size_t>(pairs_);
  const size_t choices = rows * static_cast<size_t>(shape_.choices) * sizeof(int32_t);
  const size_t row_bytes = static_cast<size_t>(row_bytes_);
  BATON_RETURN_IF_ERROR(records_.Reserve(device_, rows * static_cast<size_t>(record_bytes_)));
  BATON_RETURN_IF_ERROR(slots_.Reserve(device_, choices));
  BATON_RETURN_IF_ERROR(
      offsets_.Reserve(device_, static_cast<size_t>(slots_per_rank_ + 1) * sizeof(int32_t)));
  BATON_RETURN_IF_ERROR(row_tokens_.Reserve(device_, choices));
  BATON_RETURN_IF_ERROR(pair_rows_.Reserve(device_, choices));
  BATON_RETURN_IF_ERROR(inner_.Reserve(
      device_, pairs * static_cast<size_t>(shape_.inner) * kernels::DTypeBytes(shape_.act)));
  BATON_RETURN_IF_ERROR(outputs_.Reserve(device_, pairs * row_bytes));
  return returned_.Reserve(device_, pairs * row_bytes);
}

void ExpertExchange::PackRecords(const TensorView& x) {
  const size_t row_bytes = static_cast<size_t>(row_bytes_);
  const size_t slot_bytes = static_cast<size_t>(shape_.choices) * sizeof(int32_t);
  const size_t padding = static_cast<size_t>(record_bytes_) - row_bytes - slot_bytes;
  uint8_t* out = send_.data();
  for (size_t i = 0; i < sent_rows_.size(); ++i) {
    std::memcpy(out, x.row<const uint8_t>(sent_rows_[i]), row_bytes);
    std::memcpy(out + row_bytes, &sent_slots_[i * static_cast<size_t>(shape_.choices)], slot_bytes);
    std::memset(out + row_bytes + slot_bytes, 0, padding);
    out += record_bytes_;
  }
}

void ExpertExchange::ReadSlots() {
  const size_t slot_bytes = static_cast<size_t>(shape_.choices) * sizeof(int32_t);
  for (int64_t r = 0; r < rows_; ++r) {
    std::memcpy(slots_.data() + static_cast<size_t>(r) * slot_bytes,
                records_.data() + r * record_bytes_ + row_bytes_, slot_bytes);
  }
}

absl::Status ExpertExchange::AllToAll(const Buffer& from, const Buffer& to) {
  size_t sent = 0, received = 0;
  for (size_t rank = 0; rank < send_bytes_.size(); ++rank) {
    sent += send_bytes_[rank];
    received += receive_bytes_[rank];
  }
  bytes_sent_ += sent - send_bytes_[static_cast<size_t>(group_.rank())];
  return group_.collectives->AllToAllV(
      {reinterpret_cast<const std::byte*>(from.data()), sent}, send_bytes_,
      {reinterpret_cast<std::byte*>(to.data()), received}, receive_bytes_, group_.timeout);
}

absl::Status ExpertExchange::Dispatch(const TensorView& x, const TensorView& physical,
                                      int32_t slots_per_rank) {
  slots_per_rank_ = slots_per_rank;
  BATON_RETURN_IF_ERROR(Plan(physical));
  BATON_RETURN_IF_ERROR(ExchangeCounts());
  BATON_RETURN_IF_ERROR(ReserveForReceived());
  BATON_RETURN_IF_ERROR(
      send_.Reserve(device_, sent_rows_.size() * static_cast<size_t>(record_bytes_)));
  PackRecords(x);
  for (size_t rank = 0; rank < sent_.size(); ++rank) {
    send_bytes_[rank] = static_cast<size_t>(sent_[rank].rows * record_bytes_);
    receive_bytes_[rank] = static_cast<size_t>(received_[rank].rows * record_bytes_);
  }
  BATON_RETURN_IF_ERROR(AllToAll(send_, records_));
  ReadSlots();
  return CheckPairs();
}

// A received row says which slots it wants; the counts that came before say how many such wishes
// there are. The buffers were made for the counts.
absl::Status ExpertExchange::CheckPairs() const {
  int64_t wanted = 0;
  const int32_t* const slots = reinterpret_cast<const int32_t*>(slots_.data());
  for (int64_t i = 0; i < rows_ * shape_.choices; ++i) {
    if (slots[i] < 0 || slots[i] > slots_per_rank_) {
      return absl::InternalError(absl::StrCat("a rank of the group wants slot ", slots[i],
                                              ", expected 0..", slots_per_rank_ - 1));
    }
    wanted += slots[i] < slots_per_rank_;
  }
  if (wanted == pairs_) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("ranks of the group announced ", pairs_,
                                          " uses of this rank's experts and sent ", wanted));
}

absl::Status ExpertExchange::Return() {
  const size_t row_bytes = static_cast<size_t>(row_bytes_);
  const int32_t* const pair_rows = reinterpret_cast<const int32_t*>(pair_rows_.data());
  uint8_t* out = returned_.data();
  for (int64_t i = 0; i < rows_ * shape_.choices; ++i) {
    if (pair_rows[i] < 0) continue;
    std::memcpy(out, outputs_.data() + static_cast<size_t>(pair_rows[i]) * row_bytes, row_bytes);
    out += row_bytes;
  }
  const size_t home_pairs = static_cast<size_t>(home_row_count_ * shape_.choices);
  BATON_RETURN_IF_ERROR(home_outputs_.Reserve(device_, home_pairs * row_bytes));
  for (size_t rank = 0; rank < sent_.size(); ++rank) {
    send_bytes_[rank] = static_cast<size_t>(received_[rank].pairs) * row_bytes;
    receive_bytes_[rank] = static_cast<size_t>(sent_[rank].pairs) * row_bytes;
  }
  return AllToAll(returned_, home_outputs_);
}

}  // namespace baton::model
