#include "model/expert_exchange.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "kernels/numeric.h"
#include "kernels/ops.h"

namespace baton::model {
namespace {

using kernels::DType;
using kernels::TensorView;

constexpr int64_t kRecordAlignment = 16;  // bytes, so that every row of a message is well aligned

constexpr int64_t kGroup = 128;  // values of one scale, as QuantizeFp8 has them

int64_t ScaleCount(int64_t hidden) { return (hidden + kGroup - 1) / kGroup; }

int64_t SentBytes(const ExpertExchange::Shape& shape, Dispatch dispatch) {
  if (dispatch == Dispatch::kActivations) {
    return shape.hidden * static_cast<int64_t>(kernels::DTypeBytes(shape.act));
  }
  return shape.hidden + ScaleCount(shape.hidden) * static_cast<int64_t>(sizeof(float));
}

int64_t RecordBytes(const ExpertExchange::Shape& shape, Dispatch dispatch) {
  const int64_t bytes =
      SentBytes(shape, dispatch) + shape.choices * static_cast<int64_t>(sizeof(int32_t));
  return (bytes + kRecordAlignment - 1) / kRecordAlignment * kRecordAlignment;
}

// Values of all codes.
const std::array<float, 256>& CodeValues() {
  static const std::array<float, 256> values = [] {
    std::array<float, 256> all{};
    for (size_t code = 0; code < all.size(); ++code) {
      all[code] = kernels::F8E4M3ToF32(static_cast<uint8_t>(code));
    }
    return all;
  }();
  return values;
}

// A row that came as `hidden` codes and their scales (at any address), as activations.
template <typename Out, typename Round>
void WidenRow(const uint8_t* record, int64_t hidden, Out* out, const Round& round) {
  const std::array<float, 256>& values = CodeValues();
  for (int64_t begin = 0; begin < hidden; begin += kGroup) {
    float scale = 0;
    std::memcpy(&scale, record + hidden + begin / kGroup * static_cast<int64_t>(sizeof scale),
                sizeof scale);
    const int64_t end = std::min(begin + kGroup, hidden);
    for (int64_t i = begin; i < end; ++i) out[i] = round(values[record[i]] * scale);
  }
}

}  // namespace

const char* DispatchName(Dispatch dispatch) {
  return dispatch == Dispatch::kFp8 ? "fp8" : "activations";
}

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
      sent_bytes_(SentBytes(shape, group.dispatch)),
      record_bytes_(RecordBytes(shape, group.dispatch)),
      sent_(static_cast<size_t>(group.ranks())),
      last_row_(static_cast<size_t>(group.ranks())),
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
  if (group_.dispatch == Dispatch::kFp8) return View(x_, shape_.act, {rows_, shape_.hidden});
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

  std::fill(sent_.begin(), sent_.end(), Counts{});
  std::fill(last_row_.begin(), last_row_.end(), -1);
  for (int64_t t = 0; t < home_row_count_; ++t) {
    const int32_t* row = physical.row<const int32_t>(t);
    for (int32_t c = 0; c < choices; ++c) {
      const size_t rank = static_cast<size_t>(row[c] / slots_per_rank_);
      BATON_CHECK_LT(rank, sent_.size());
      ++sent_[rank].pairs;
      sent_[rank].rows += std::exchange(last_row_[rank], t) != t;
    }
  }
  next_.assign(sent_.size(), Counts{});
  for (size_t rank = 1; rank < sent_.size(); ++rank) {
    next_[rank] = {next_[rank - 1].rows + sent_[rank - 1].rows,
                   next_[rank - 1].pairs + sent_[rank - 1].pairs};
  }
  const size_t rows = static_cast<size_t>(next_.back().rows + sent_.back().rows);
  sent_rows_.resize(rows);
  sent_slots_.assign(rows * static_cast<size_t>(choices), slots_per_rank_);
  std::fill(last_row_.begin(), last_row_.end(), -1);
  for (int64_t t = 0; t < home_row_count_; ++t) {
    const int32_t* row = physical.row<const int32_t>(t);
    for (int32_t c = 0; c < choices; ++c) {
      const size_t rank = static_cast<size_t>(row[c] / slots_per_rank_);
      Counts& next = next_[rank];
      if (std::exchange(last_row_[rank], t) != t) {
        sent_rows_[static_cast<size_t>(next.rows++)] = static_cast<int32_t>(t);
      }
      sent_slots_[static_cast<size_t>((next.rows - 1) * choices + c)] = row[c] % slots_per_rank_;
      home[t * choices + c] = next.pairs++;
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
  if (group_.dispatch == Dispatch::kFp8) {
    BATON_RETURN_IF_ERROR(x_.Reserve(device_, rows * row_bytes));
  }
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

absl::Status ExpertExchange::Quantize(const TensorView& x) {
  const int64_t rows = x.dim(0);
  BATON_RETURN_IF_ERROR(codes_.Reserve(device_, static_cast<size_t>(rows * shape_.hidden)));
  BATON_RETURN_IF_ERROR(scales_.Reserve(
      device_, static_cast<size_t>(rows * ScaleCount(shape_.hidden)) * sizeof(float)));
  BATON_RETURN_IF_ERROR(kernels::QuantizeFp8(
      device_, {.x = x,
                .out = View(codes_, DType::kF8E4M3, {rows, shape_.hidden}),
                .scales = View(scales_, DType::kF32, {rows, ScaleCount(shape_.hidden)})}));
  return device_.Synchronize();
}

absl::Status ExpertExchange::PackRecords(const TensorView& x) {
  const bool fp8 = group_.dispatch == Dispatch::kFp8;
  if (fp8) BATON_RETURN_IF_ERROR(Quantize(x));
  BATON_RETURN_IF_ERROR(
      send_.Reserve(device_, sent_rows_.size() * static_cast<size_t>(record_bytes_)));
  const size_t hidden = static_cast<size_t>(shape_.hidden);
  const size_t sent = static_cast<size_t>(sent_bytes_);
  const size_t scales = sent - hidden;  // bytes of a row's, where codes travel
  const size_t slots = static_cast<size_t>(shape_.choices) * sizeof(int32_t);
  const size_t padding = static_cast<size_t>(record_bytes_) - sent - slots;
  uint8_t* out = send_.data();
  for (size_t i = 0; i < sent_rows_.size(); ++i) {
    const size_t row = static_cast<size_t>(sent_rows_[i]);
    if (fp8) {
      std::memcpy(out, codes_.data() + row * hidden, hidden);
      std::memcpy(out + hidden, scales_.data() + row * scales, scales);
    } else {
      std::memcpy(out, x.row<const uint8_t>(sent_rows_[i]), sent);
    }
    std::memcpy(out + sent, &sent_slots_[i * static_cast<size_t>(shape_.choices)], slots);
    std::memset(out + sent + slots, 0, padding);
    out += record_bytes_;
  }
  return absl::OkStatus();
}

void ExpertExchange::ReadRecords() {
  const size_t slot_bytes = static_cast<size_t>(shape_.choices) * sizeof(int32_t);
  for (int64_t r = 0; r < rows_; ++r) {
    const uint8_t* const record = records_.data() + r * record_bytes_;
    std::memcpy(slots_.data() + static_cast<size_t>(r) * slot_bytes, record + sent_bytes_,
                slot_bytes);
    if (group_.dispatch != Dispatch::kFp8) continue;
    const TensorView x = this->x();
    if (shape_.act == DType::kBF16) {
      WidenRow(record, shape_.hidden, x.row<uint16_t>(r), kernels::F32ToBf16);
    } else {
      WidenRow(record, shape_.hidden, x.row<float>(r), [](float value) { return value; });
    }
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

absl::Status ExpertExchange::Start(CallQueue::Call call) {
  if (queue_ == nullptr) return call();
  ticket_ = queue_->Post(std::move(call));
  return absl::OkStatus();
}

absl::Status ExpertExchange::Finish() {
  return queue_ == nullptr ? absl::OkStatus() : queue_->Wait(ticket_);
}

absl::Status ExpertExchange::BeginDispatch(const TensorView& x, const TensorView& physical,
                                           int32_t slots_per_rank) {
  slots_per_rank_ = slots_per_rank;
  BATON_RETURN_IF_ERROR(Plan(physical));
  BATON_RETURN_IF_ERROR(PackRecords(x));
  return Start([this] { return SendRows(); });
}

absl::Status ExpertExchange::SendRows() {
  BATON_RETURN_IF_ERROR(ExchangeCounts());
  BATON_RETURN_IF_ERROR(ReserveForReceived());
  for (size_t rank = 0; rank < sent_.size(); ++rank) {
    send_bytes_[rank] = static_cast<size_t>(sent_[rank].rows * record_bytes_);
    receive_bytes_[rank] = static_cast<size_t>(received_[rank].rows * record_bytes_);
  }
  return AllToAll(send_, records_);
}

absl::Status ExpertExchange::EndDispatch() {
  BATON_RETURN_IF_ERROR(Finish());
  ReadRecords();
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

absl::Status ExpertExchange::BeginReturn() {
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
  return Start([this] { return AllToAll(returned_, home_outputs_); });
}

absl::Status ExpertExchange::EndReturn() { return Finish(); }

}  // namespace baton::model
