#include "model/expert_exchange.h"

#include <algorithm>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"

namespace baton::model {
namespace {

using kernels::DType;
using kernels::TensorView;

constexpr int64_t kIndexBytes = sizeof(int32_t);

kernels::RecordLayout LayoutOf(const ExpertExchange::Shape& shape, Dispatch dispatch) {
  return {.hidden = shape.hidden,
          .choices = shape.choices,
          .dtype = dispatch == Dispatch::kFp8 ? DType::kF8E4M3 : shape.act};
}

// Rows for experts that read E4M3 travel so.
RankGroup GroupFor(RankGroup group, const ExpertExchange::Shape& shape) {
  if (shape.fp8) group.dispatch = Dispatch::kFp8;
  return group;
}

int64_t Groups(int64_t columns) { return (columns + 127) / 128; }

}  // namespace

const char* DispatchName(Dispatch dispatch) {
  return dispatch == Dispatch::kFp8 ? "fp8" : "activations";
}

ExpertExchange::ExpertExchange(kernels::Device& device, const RankGroup& group, const Shape& shape)
    : device_(device),
      group_(GroupFor(group, shape)),
      shape_(shape),
      layout_(LayoutOf(shape, group_.dispatch)),
      row_bytes_(shape.hidden * static_cast<int64_t>(kernels::DTypeBytes(shape.act))),
      sent_(static_cast<size_t>(group.ranks())),
      all_counts_(static_cast<size_t>(group.ranks()) * static_cast<size_t>(group.ranks())),
      received_(static_cast<size_t>(group.ranks())),
      send_bytes_(static_cast<size_t>(group.ranks())),
      receive_bytes_(static_cast<size_t>(group.ranks())) {
  BATON_CHECK(!group.solo());
}

absl::Status ExpertExchange::Reserve(Buffer& buffer, int64_t bytes) {
  const size_t wanted = static_cast<size_t>(bytes);
  if (wanted <= buffer.bytes()) return absl::OkStatus();
  BATON_RETURN_IF_ERROR(MayWait());
  ++moves_;
  BATON_RETURN_IF_ERROR(group_.Settle());  // memory is given back by waiting for who may use it
  buffer.buffer_ = {};                     // before the larger one comes
  // Some room to spare, so that slowly growing batches do not allocate every time.
  BATON_ASSIGN_OR_RETURN(buffer.buffer_, device_.Allocate(wanted + wanted / 4));
  return absl::OkStatus();
}

absl::Status ExpertExchange::MayWait() const {
  if (recorder_ == nullptr || !recorder_->is_recording()) return absl::OkStatus();
  return absl::FailedPreconditionError("a pass that is recorded would wait for the device");
}

TensorView ExpertExchange::View(const Buffer& buffer, DType dtype,
                                std::initializer_list<int64_t> shape) const {
  return TensorView::Contiguous(buffer.data(), dtype, shape);
}

TensorView ExpertExchange::x() const {
  if (shape_.fp8) {
    TensorView view = View(records_, DType::kF8E4M3, {rows_, shape_.hidden});
    view.strides[0] = layout_.bytes();
    return view;
  }
  if (group_.dispatch == Dispatch::kFp8) return View(x_, shape_.act, {rows_, shape_.hidden});
  TensorView view = View(records_, shape_.act, {rows_, shape_.hidden});
  view.strides[0] = layout_.bytes() / static_cast<int64_t>(kernels::DTypeBytes(shape_.act));
  return view;
}
TensorView ExpertExchange::x_scales() const {
  if (!shape_.fp8) return {};
  TensorView view = View(records_, DType::kF32, {rows_, layout_.scales()});
  view.data = records_.data() + layout_.scales_at();
  view.strides[0] = layout_.bytes() / static_cast<int64_t>(sizeof(float));
  return view;
}
TensorView ExpertExchange::slots() const {
  return View(slots_, DType::kI32, {rows_, shape_.choices});
}
TensorView ExpertExchange::offsets() const {
  return View(offsets_, DType::kI32, {slots_per_rank_ + 1});
}
TensorView ExpertExchange::row_tokens() const { return View(row_tokens_, DType::kI32, {pairs_}); }
TensorView ExpertExchange::pair_rows() const {
  return View(pair_rows_, DType::kI32, {rows_, shape_.choices});
}
TensorView ExpertExchange::inner() const {
  return View(inner_, shape_.act, {pairs_, shape_.inner});
}
TensorView ExpertExchange::inner_codes() const {
  return View(inner_codes_, DType::kF8E4M3, {pairs_, shape_.inner});
}
TensorView ExpertExchange::inner_scales() const {
  return View(inner_scales_, DType::kF32, {pairs_, Groups(shape_.inner)});
}
TensorView ExpertExchange::pair_count() const {
  return offsets().Slice(0, slots_per_rank_, slots_per_rank_ + 1);
}
TensorView ExpertExchange::outputs() const {
  return View(outputs_, shape_.act, {pairs_, shape_.hidden});
}
TensorView ExpertExchange::home_outputs() const {
  int64_t rows = 0;
  for (const Counts& of_rank : sent_) rows += of_rank.pairs;
  return View(home_outputs_, shape_.act, {rows, shape_.hidden});
}
TensorView ExpertExchange::home_rows() const {
  return View(home_rows_, DType::kI32, {home_row_count_, shape_.choices});
}

absl::Status ExpertExchange::Start(CallQueue::Call call) {
  if (queue_ == nullptr) return call();
  ticket_ = queue_->Post(std::move(call));
  return absl::OkStatus();
}

absl::Status ExpertExchange::Finish() {
  return queue_ == nullptr ? absl::OkStatus() : queue_->Wait(ticket_);
}

// Blocks of fixed messages are those of the ranks that are present, one after the other.
absl::Status ExpertExchange::NumberBlocks() {
  std::vector<int32_t> block_of;
  block_of.reserve(send_bytes_.size());
  int32_t blocks = 0;
  for (int32_t rank = 0; rank < group_.ranks(); ++rank) {
    block_of.push_back(group_.collectives->is_present(rank) ? blocks++ : -1);
  }
  if (block_of == block_of_) return absl::OkStatus();
  const int64_t bytes = group_.ranks() * kIndexBytes;
  BATON_RETURN_IF_ERROR(MayWait());
  BATON_RETURN_IF_ERROR(group_.Settle());  // the copy waits for the device
  BATON_RETURN_IF_ERROR(Reserve(blocks_, bytes));
  BATON_RETURN_IF_ERROR(
      device_.CopyToDevice(blocks_.data(), block_of.data(), static_cast<size_t>(bytes)));
  block_of_ = std::move(block_of);
  return absl::OkStatus();
}

absl::Status ExpertExchange::ReserveForSent() {
  // Fixed: for as many rows as there is room for, so that the buffers do not move from pass to
  // pass.
  const int64_t rows = std::max<int64_t>(home_row_count_, room_.rows);
  const int64_t ranks = group_.ranks(), pairs = rows * shape_.choices;
  // Counted: as many as there can be, so that nothing waits for the counts before it is packed.
  const int64_t records =
      fixed() ? ranks * room_.rows : home_row_count_ * std::min<int64_t>(ranks, shape_.choices);
  BATON_RETURN_IF_ERROR(Reserve(counts_, ranks * static_cast<int64_t>(sizeof(Counts))));
  BATON_RETURN_IF_ERROR(Reserve(sent_records_, pairs * kIndexBytes));
  BATON_RETURN_IF_ERROR(Reserve(home_rows_, pairs * kIndexBytes));
  if (group_.dispatch == Dispatch::kFp8 && !shape_.fp8) {
    BATON_RETURN_IF_ERROR(Reserve(codes_, rows * shape_.hidden));
    BATON_RETURN_IF_ERROR(
        Reserve(scales_, rows * layout_.scales() * static_cast<int64_t>(sizeof(float))));
  }
  return Reserve(send_, records * layout_.bytes());
}

absl::Status ExpertExchange::Pack(const TensorView& x, const TensorView& scales,
                                  const kernels::DispatchPlanArgs& plan) {
  kernels::DispatchPackArgs args{
      .layout = layout_, .x = x, .scales = scales, .plan = plan, .out = {}};
  if (group_.dispatch == Dispatch::kFp8 && !shape_.fp8) {
    args.x = View(codes_, DType::kF8E4M3, {home_row_count_, shape_.hidden});
    args.scales = View(scales_, DType::kF32, {home_row_count_, layout_.scales()});
    BATON_RETURN_IF_ERROR(
        kernels::QuantizeFp8(device_, {.x = x, .out = args.x, .scales = args.scales}));
  }
  int64_t records = static_cast<int64_t>(send_.bytes()) / layout_.bytes();
  if (fixed()) {
    const int64_t blocks = 1 + *std::max_element(block_of_.begin(), block_of_.end());
    records = blocks * room_.rows;
  }
  args.out = View(send_, DType::kU8, {records, layout_.bytes()});
  return kernels::DispatchPack(device_, args);
}

absl::Status ExpertExchange::BeginDispatch(const TensorView& x, const TensorView& scales,
                                           const TensorView& physical, int32_t slots_per_rank) {
  slots_per_rank_ = slots_per_rank;
  home_row_count_ = physical.dim(0);
  BATON_RETURN_IF_ERROR(ReserveForSent());
  kernels::DispatchPlanArgs plan{
      .physical = physical,
      .slots_per_rank = slots_per_rank,
      .row_capacity = room_.rows,
      .pair_capacity = room_.pairs,
      .counts = View(counts_, DType::kI32, {group_.ranks(), 2}),
      .records = View(sent_records_, DType::kI32, {home_row_count_, shape_.choices}),
      .home_rows = home_rows(),
      .blocks = {},
      .most_pairs = {}};
  if (fixed()) {
    BATON_RETURN_IF_ERROR(NumberBlocks());
    plan.blocks = View(blocks_, DType::kI32, {group_.ranks()});
    plan.most_pairs = room_.most_pairs;
  }
  BATON_RETURN_IF_ERROR(kernels::DispatchPlan(device_, plan));
  BATON_RETURN_IF_ERROR(Pack(x, scales, plan));
  if (!fixed()) BATON_RETURN_IF_ERROR(ReadCounts());
  return Start([this] { return SendRows(); });
}

absl::Status ExpertExchange::ReadCounts() {
  BATON_RETURN_IF_ERROR(group_.Settle());
  return device_.CopyToHost(sent_.data(), counts_.data(), sent_.size() * sizeof(Counts));
}

absl::Status ExpertExchange::SendRows() {
  if (fixed()) {
    TakeFixedCounts();
  } else {
    BATON_RETURN_IF_ERROR(ExchangeCounts());
  }
  BATON_RETURN_IF_ERROR(ReserveForReceived());
  const size_t record_bytes = static_cast<size_t>(layout_.bytes());
  for (size_t rank = 0; rank < sent_.size(); ++rank) {
    send_bytes_[rank] = static_cast<size_t>(sent_[rank].rows) * record_bytes;
    receive_bytes_[rank] = static_cast<size_t>(received_[rank].rows) * record_bytes;
  }
  return AllToAll(send_, records_, layout_.bytes());
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

void ExpertExchange::TakeFixedCounts() {
  rows_ = 0;
  pairs_ = 0;
  for (size_t rank = 0; rank < sent_.size(); ++rank) {
    const bool present = block_of_[rank] >= 0;
    sent_[rank] = present ? Counts{room_.rows, room_.pairs} : Counts{};
    received_[rank] = sent_[rank];
    rows_ += sent_[rank].rows;
    pairs_ += sent_[rank].pairs;
  }
}

absl::Status ExpertExchange::ReserveForReceived() {
  const int64_t choices = rows_ * shape_.choices * kIndexBytes;
  BATON_RETURN_IF_ERROR(Reserve(records_, rows_ * layout_.bytes()));
  if (shape_.fp8) {
    BATON_RETURN_IF_ERROR(Reserve(inner_codes_, pairs_ * shape_.inner));
    BATON_RETURN_IF_ERROR(Reserve(
        inner_scales_, pairs_ * Groups(shape_.inner) * static_cast<int64_t>(sizeof(float))));
  } else if (group_.dispatch == Dispatch::kFp8) {
    BATON_RETURN_IF_ERROR(Reserve(x_, rows_ * row_bytes_));
  }
  BATON_RETURN_IF_ERROR(Reserve(slots_, choices));
  BATON_RETURN_IF_ERROR(Reserve(offsets_, (slots_per_rank_ + 1) * kIndexBytes));
  BATON_RETURN_IF_ERROR(Reserve(row_tokens_, pairs_ * kIndexBytes));
  BATON_RETURN_IF_ERROR(Reserve(pair_rows_, choices));
  BATON_RETURN_IF_ERROR(Reserve(
      inner_, pairs_ * shape_.inner * static_cast<int64_t>(kernels::DTypeBytes(shape_.act))));
  BATON_RETURN_IF_ERROR(Reserve(outputs_, pairs_ * row_bytes_));
  BATON_RETURN_IF_ERROR(Reserve(return_index_, pairs_ * kIndexBytes));
  return Reserve(returned_, pairs_ * row_bytes_);
}

absl::Status ExpertExchange::AllToAll(const Buffer& from, const Buffer& to, int64_t unit) {
  size_t sent = 0, received = 0;
  for (size_t rank = 0; rank < send_bytes_.size(); ++rank) {
    sent += send_bytes_[rank];
    received += receive_bytes_[rank];
  }
  const size_t to_others = sent - send_bytes_[static_cast<size_t>(group_.rank())];
  if (send_bytes_.size() == 1) {  // to itself, wherever the memory is
    const int64_t units = static_cast<int64_t>(sent) / unit;
    return kernels::CopyRows(device_, {.x = View(from, DType::kU8, {units, unit}),
                                       .index = {},
                                       .out = View(to, DType::kU8, {units, unit})});
  }
  const std::span<const std::byte> all_sent(reinterpret_cast<const std::byte*>(from.data()), sent);
  const std::span<std::byte> all_received(reinterpret_cast<std::byte*>(to.data()), received);
  if (recorder_ == nullptr) {
    bytes_sent_ += to_others;
    return group_.data().AllToAllV(all_sent, send_bytes_, all_received, receive_bytes_,
                                   group_.timeout);
  }
  return recorder_->Call([this, all_sent, all_received, to_others, send_bytes = send_bytes_,
                          receive_bytes = receive_bytes_] {
    bytes_sent_ += to_others;
    return group_.data().AllToAllV(all_sent, send_bytes, all_received, receive_bytes,
                                   group_.timeout);
  });
}

absl::Status ExpertExchange::EndDispatch() {
  BATON_RETURN_IF_ERROR(Finish());
  BATON_RETURN_IF_ERROR(kernels::DispatchUnpack(
      device_, {.layout = layout_,
                .records = View(records_, DType::kU8, {rows_, layout_.bytes()}),
                .slots_per_rank = slots_per_rank_,
                .x = group_.dispatch == Dispatch::kFp8 && !shape_.fp8 ? x() : TensorView{},
                .slots = slots()}));
  return device_.host_memory() ? CheckPairs() : absl::OkStatus();
}

// A received row says which slots it wants; the counts that came before say how many such wishes
// there are. The buffers were made for the counts. (On a GPU what is too much is left out.)
absl::Status ExpertExchange::CheckPairs() const {
  const int32_t* const slots = reinterpret_cast<const int32_t*>(slots_.data());
  const int64_t wanted = std::count_if(slots, slots + rows_ * shape_.choices,
                                       [&](int32_t slot) { return slot < slots_per_rank_; });
  if (fixed() ? wanted <= pairs_ : wanted == pairs_) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("ranks of the group announced ", pairs_,
                                          " uses of this rank's experts and sent ", wanted));
}

absl::Status ExpertExchange::BeginReturn() {
  const TensorView index = View(return_index_, DType::kI32, {pairs_});
  BATON_RETURN_IF_ERROR(kernels::ReturnPlan(device_, {.pair_rows = pair_rows(),
                                                      .row_capacity = room_.rows,
                                                      .pair_capacity = room_.pairs,
                                                      .index = index}));
  BATON_RETURN_IF_ERROR(
      kernels::CopyRows(device_, {.x = outputs(),
                                  .index = index,
                                  .out = View(returned_, shape_.act, {pairs_, shape_.hidden})}));
  BATON_RETURN_IF_ERROR(Reserve(home_outputs_, static_cast<int64_t>(home_outputs().bytes())));
  const size_t row_bytes = static_cast<size_t>(row_bytes_);
  for (size_t rank = 0; rank < sent_.size(); ++rank) {
    send_bytes_[rank] = static_cast<size_t>(received_[rank].pairs) * row_bytes;
    receive_bytes_[rank] = static_cast<size_t>(sent_[rank].pairs) * row_bytes;
  }
  return Start([this] { return AllToAll(returned_, home_outputs_, row_bytes_); });
}

absl::Status ExpertExchange::EndReturn() { return Finish(); }

}  // namespace baton::model
