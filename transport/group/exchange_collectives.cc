#include "transport/group/exchange_collectives.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace baton::transport {
namespace {

// Up to so many bytes everybody sends everything to everybody: one exchange is cheaper than two.
constexpr size_t kSmallReduceBytes = 8192;
// Slices end at multiples of it, so that ranks do not share cache lines of `data`.
constexpr size_t kSliceAlignBytes = 64;

class ExchangeCollectives final : public Collectives {
 public:
  ExchangeCollectives(const GroupOptions& options, uint64_t generation,
                      std::shared_ptr<Exchange> exchange, std::unique_ptr<BufferOps> buffers,
                      std::shared_ptr<Clock> clock,
                      std::unique_ptr<DeviceCalls> of_device = nullptr)
      : options_(options),
        clock_(std::move(clock)),
        generation_(generation),
        exchange_(std::move(exchange)),
        buffers_(std::move(buffers)),
        of_device_(std::move(of_device)),
        send_(static_cast<size_t>(options.world_size)),
        recv_(static_cast<size_t>(options.world_size)) {
    for (int rank = 0; rank < options.world_size; ++rank) {
      if (!IsAbsent(options, rank)) present_.push_back(rank);
    }
  }

  DeviceCalls* ForDevice() override { return of_device_.get(); }
  int world_size() const override { return options_.world_size; }
  int rank() const override { return options_.rank; }
  bool is_present(int rank) const override { return !IsAbsent(options_, rank); }
  uint64_t generation() const override { return generation_; }
  absl::Status health() const override { return exchange_->state().failure().status; }
  std::vector<int> lost_ranks() const override { return exchange_->state().failure().lost_ranks; }
  std::vector<int> gone_ranks() const override { return exchange_->GoneRanks(); }
  void MoveOn() override { exchange_->MoveOn(); }
  void SetWakeup(std::function<void()> wakeup) override {
    exchange_->state().SetWakeup(std::move(wakeup));
  }
  void Ring() override { exchange_->Ring(); }
  bool PeerWaits() const override { return exchange_->state().PeerWaits(); }

  void Abort(const absl::Status& why) override { AbortAfter(why, 0); }

  absl::Status AllReduceSum(std::span<std::byte> data, ReduceType type, Duration timeout) override;
  absl::Status AllGather(std::span<const std::byte> mine, std::span<std::byte> all,
                         Duration timeout) override;
  absl::Status Broadcast(std::span<std::byte> data, int root, Duration timeout) override;
  absl::Status AllToAllV(std::span<const std::byte> send, std::span<const size_t> send_bytes,
                         std::span<std::byte> recv, std::span<const size_t> recv_bytes,
                         Duration timeout) override;
  absl::Status Barrier(Duration timeout) override {
    Clear();
    return Run({.kind = CallKind::kBarrier}, Limit(timeout));
  }

 private:
  void Clear() {
    std::fill(send_.begin(), send_.end(), SendSpan());
    std::fill(recv_.begin(), recv_.end(), RecvSpan());
  }
  CallLimit Limit(Duration timeout) { return {clock_->Now() + timeout, timeout}; }
  absl::Status Run(const CallShape& shape, const CallLimit& limit) {
    return exchange_->Run(shape, send_, recv_, limit);
  }
  void AbortAfter(const absl::Status& why, uint64_t last_good_call) {
    const GroupState& state = exchange_->state();
    const std::string message = absl::StrCat(state.Name(state.rank()), ": ", why.message());
    exchange_->Abort({absl::Status(why.code(), message), {}}, last_good_call);
  }
  // A caller's mistake that this rank sees alone: the others must not wait for it.
  absl::Status Refuse(const std::string& message) {
    BATON_RETURN_IF_ERROR(health());
    AbortAfter(absl::InvalidArgumentError(message), exchange_->state().entered());
    return health();
  }
  absl::Status ReduceSmall(std::span<std::byte> data, const CallShape& shape,
                           const CallLimit& limit);
  absl::Status ReducePart(std::span<std::byte> part, CallShape shape, const CallLimit& limit);
  absl::Status Sum(const CallShape& shape, std::span<const std::byte* const> terms,
                   std::span<std::byte> out) {
    const ReduceType type =
        shape.kind == CallKind::kAllReduceF32 ? ReduceType::kF32 : ReduceType::kBF16;
    return Local(buffers_->Sum(type, terms, out));
  }
  // What this rank alone has failed at: the others must not wait for it.
  absl::Status Local(const absl::Status& status) {
    if (!status.ok()) AbortAfter(status, exchange_->state().entered());
    return status;
  }
  // At most reduce_part_bytes, and kSmallReduceBytes for each rank.
  absl::StatusOr<std::span<std::byte>> Scratch(size_t bytes) {
    absl::StatusOr<std::span<std::byte>> scratch = buffers_->Scratch(bytes);
    if (!scratch.ok()) return Local(scratch.status());
    return scratch;
  }

  const GroupOptions options_;
  const std::shared_ptr<Clock> clock_;
  const uint64_t generation_;
  const std::shared_ptr<Exchange> exchange_;
  const std::unique_ptr<BufferOps> buffers_;
  const std::unique_ptr<DeviceCalls> of_device_;
  std::vector<int> present_;
  std::vector<SendSpan> send_;  // of the exchange at hand, by rank
  std::vector<RecvSpan> recv_;
};

absl::Status ExchangeCollectives::AllReduceSum(std::span<std::byte> data, ReduceType type,
                                               Duration timeout) {
  const size_t element_bytes = type == ReduceType::kF32 ? 4 : 2;
  if (data.size() % element_bytes != 0) {
    return Refuse(absl::StrCat("AllReduceSum: ", data.size(),
                               " bytes are no whole number of elements of ", element_bytes,
                               " bytes"));
  }
  const CallShape shape{
      .kind = type == ReduceType::kF32 ? CallKind::kAllReduceF32 : CallKind::kAllReduceBF16,
      .bytes = data.size()};
  const CallLimit limit = Limit(timeout);
  if (data.size() <= kSmallReduceBytes) return ReduceSmall(data, shape, limit);
  while (!data.empty()) {
    const size_t bytes = std::min<size_t>(data.size(), options_.reduce_part_bytes);
    BATON_RETURN_IF_ERROR(ReducePart(data.first(bytes), shape, limit));
    data = data.subspan(bytes);
  }
  return absl::OkStatus();
}

absl::Status ExchangeCollectives::ReduceSmall(std::span<std::byte> data, const CallShape& shape,
                                              const CallLimit& limit) {
  BATON_ASSIGN_OR_RETURN(const std::span<std::byte> theirs, Scratch(data.size() * present_.size()));
  std::vector<const std::byte*> terms;
  Clear();
  for (size_t i = 0; i < present_.size(); ++i) {
    const size_t rank = static_cast<size_t>(present_[i]);
    if (present_[i] == options_.rank) {
      terms.push_back(data.data());
      continue;
    }
    send_[rank] = data;
    recv_[rank] = theirs.subspan(i * data.size(), data.size());
    terms.push_back(recv_[rank].data());
  }
  BATON_RETURN_IF_ERROR(Run(shape, limit));
  return Sum(shape, terms, data);
}

// Slice i of `part` is added up by the i-th present rank.
absl::Status ExchangeCollectives::ReducePart(std::span<std::byte> part, CallShape shape,
                                             const CallLimit& limit) {
  const size_t per_rank = (part.size() + present_.size() - 1) / present_.size();
  const size_t slice_bytes =
      (per_rank + kSliceAlignBytes - 1) / kSliceAlignBytes * kSliceAlignBytes;
  const auto slice = [&](size_t i) {
    const size_t begin = std::min(part.size(), i * slice_bytes);
    return part.subspan(begin, std::min(slice_bytes, part.size() - begin));
  };
  const size_t self = static_cast<size_t>(
      std::find(present_.begin(), present_.end(), options_.rank) - present_.begin());
  const std::span<std::byte> mine = slice(self);
  BATON_ASSIGN_OR_RETURN(const std::span<std::byte> theirs, Scratch(mine.size() * present_.size()));
  std::vector<const std::byte*> terms;
  Clear();
  for (size_t i = 0; i < present_.size(); ++i) {
    const size_t rank = static_cast<size_t>(present_[i]);
    if (i == self) {
      terms.push_back(mine.data());
      continue;
    }
    send_[rank] = slice(i);
    recv_[rank] = theirs.subspan(i * mine.size(), mine.size());
    terms.push_back(recv_[rank].data());
  }
  shape.part = 1;
  BATON_RETURN_IF_ERROR(Run(shape, limit));
  BATON_RETURN_IF_ERROR(Sum(shape, terms, mine));
  Clear();
  for (size_t i = 0; i < present_.size(); ++i) {
    if (i == self) continue;
    const size_t rank = static_cast<size_t>(present_[i]);
    send_[rank] = mine;
    recv_[rank] = slice(i);
  }
  shape.part = 2;
  return Run(shape, limit);
}

absl::Status ExchangeCollectives::AllGather(std::span<const std::byte> mine,
                                            std::span<std::byte> all, Duration timeout) {
  if (all.size() != mine.size() * send_.size()) {
    return Refuse(absl::StrCat("AllGather: ", mine.size(), " bytes of each of ", send_.size(),
                               " ranks go into a buffer of ", all.size(),
                               "; the sizes must agree"));
  }
  Clear();
  for (size_t rank = 0; rank < send_.size(); ++rank) {
    const std::span<std::byte> slot = all.subspan(rank * mine.size(), mine.size());
    if (static_cast<int>(rank) == options_.rank) {
      BATON_RETURN_IF_ERROR(Local(buffers_->Copy(slot, mine)));
    } else if (is_present(static_cast<int>(rank))) {
      send_[rank] = mine;
      recv_[rank] = slot;
    } else {
      BATON_RETURN_IF_ERROR(Local(buffers_->Zero(slot)));
    }
  }
  return Run({.kind = CallKind::kAllGather, .bytes = mine.size()}, Limit(timeout));
}

absl::Status ExchangeCollectives::Broadcast(std::span<std::byte> data, int root, Duration timeout) {
  if (root < 0 || root >= options_.world_size || !is_present(root)) {
    return Refuse(absl::StrCat("Broadcast: root is ", root, "; it must be a present rank in [0, ",
                               options_.world_size, ")"));
  }
  Clear();
  if (root == options_.rank) {
    std::fill(send_.begin(), send_.end(), SendSpan(data));
  } else {
    recv_[static_cast<size_t>(root)] = data;
  }
  return Run(
      {.kind = CallKind::kBroadcast, .root = static_cast<int16_t>(root), .bytes = data.size()},
      Limit(timeout));
}

absl::Status ExchangeCollectives::AllToAllV(std::span<const std::byte> send,
                                            std::span<const size_t> send_bytes,
                                            std::span<std::byte> recv,
                                            std::span<const size_t> recv_bytes, Duration timeout) {
  const size_t ranks = send_.size();
  if (send_bytes.size() != ranks || recv_bytes.size() != ranks) {
    return Refuse(absl::StrCat("AllToAllV: ", send_bytes.size(), " send sizes and ",
                               recv_bytes.size(), " receive sizes in a group of ", ranks,
                               " ranks; there must be one each"));
  }
  const size_t sent = std::accumulate(send_bytes.begin(), send_bytes.end(), size_t{0});
  const size_t received = std::accumulate(recv_bytes.begin(), recv_bytes.end(), size_t{0});
  const size_t self = static_cast<size_t>(options_.rank);
  if (sent != send.size() || received != recv.size() || send_bytes[self] != recv_bytes[self]) {
    return Refuse(absl::StrCat("AllToAllV: send_bytes add up to ", sent, " for a buffer of ",
                               send.size(), ", recv_bytes to ", received, " for one of ",
                               recv.size(), ", and this rank sends itself ", send_bytes[self],
                               " and expects ", recv_bytes[self], "; the sizes must agree"));
  }
  Clear();
  for (size_t rank = 0; rank < ranks; ++rank) {
    const SendSpan to = send.first(send_bytes[rank]);
    const RecvSpan from = recv.first(recv_bytes[rank]);
    send = send.subspan(to.size());
    recv = recv.subspan(from.size());
    if (!is_present(static_cast<int>(rank)) && !(to.empty() && from.empty())) {
      return Refuse(absl::StrCat("AllToAllV: ", to.size(), " bytes to and ", from.size(),
                                 " from rank ", rank, ", which is absent; both must be 0"));
    }
    send_[rank] = to;
    recv_[rank] = from;
  }
  BATON_RETURN_IF_ERROR(Local(buffers_->Copy(recv_[self], send_[self])));
  return Run({.kind = CallKind::kAllToAllV}, Limit(timeout));
}

// The calls of an exchange of a GPU's memory.
class ExchangeDeviceCalls final : public DeviceCalls {
 public:
  ExchangeDeviceCalls(std::unique_ptr<ExchangeCollectives> calls, DeviceExchange* exchange,
                      std::shared_ptr<Clock> clock)
      : calls_(std::move(calls)), exchange_(*exchange), clock_(std::move(clock)) {}

  absl::Status AllReduceSum(std::span<std::byte> data, ReduceType type, Duration timeout) override {
    return calls_->AllReduceSum(data, type, timeout);
  }
  absl::Status AllGather(std::span<const std::byte> mine, std::span<std::byte> all,
                         Duration timeout) override {
    return calls_->AllGather(mine, all, timeout);
  }
  absl::Status Broadcast(std::span<std::byte> data, int root, Duration timeout) override {
    return calls_->Broadcast(data, root, timeout);
  }
  absl::Status AllToAllV(std::span<const std::byte> send, std::span<const size_t> send_bytes,
                         std::span<std::byte> recv, std::span<const size_t> recv_bytes,
                         Duration timeout) override {
    return calls_->AllToAllV(send, send_bytes, recv, recv_bytes, timeout);
  }
  absl::Status Settle(Duration timeout) override {
    return exchange_.Settle({clock_->Now() + timeout, timeout});
  }
  void TrustSizes(bool trusted) override { exchange_.TrustSizes(trusted); }

 private:
  const std::unique_ptr<ExchangeCollectives> calls_;
  DeviceExchange& exchange_;
  const std::shared_ptr<Clock> clock_;
};

}  // namespace

std::unique_ptr<Collectives> MakeExchangeCollectives(const GroupOptions& options,
                                                     uint64_t generation,
                                                     std::unique_ptr<Exchange> exchange,
                                                     std::shared_ptr<Clock> clock) {
  std::unique_ptr<BufferOps> buffers = exchange->TakeBuffers();
  DeviceExchange* const device = exchange->device();
  std::shared_ptr<Exchange> shared = std::move(exchange);
  auto calls =
      std::make_unique<ExchangeCollectives>(options, generation, shared, std::move(buffers), clock);
  if (device == nullptr) return calls;
  Exchange& host = device->OnHost();
  auto of_device = std::make_unique<ExchangeDeviceCalls>(std::move(calls), device, clock);
  return std::make_unique<ExchangeCollectives>(options, generation,
                                               std::shared_ptr<Exchange>(std::move(shared), &host),
                                               host.TakeBuffers(), clock, std::move(of_device));
}

}  // namespace baton::transport
