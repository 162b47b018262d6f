#include "transport/faulty/faulty_collectives.h"

#include <poll.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace baton::transport {
namespace {

void SleepFor(Duration delay) { poll(nullptr, 0, static_cast<int>(delay.millis())); }

}  // namespace

FaultyCollectives::FaultyCollectives(std::unique_ptr<Collectives> inner,
                                     FaultyCollectivesOptions options)
    : inner_(std::move(inner)), options_(std::move(options)), rng_(options_.seed) {}

absl::Status FaultyCollectives::MeetFate() {
  // Always the same number of draws, so that one rate does not change what the others hit.
  const bool delay = rng_.Chance(options_.rates.delay);
  const bool fail = rng_.Chance(options_.rates.fail);
  const bool drop = rng_.Chance(options_.rates.drop);
  const double share = rng_.Uniform();
  const bool is_spared = counts_.calls++ < options_.first_call;
  is_dropped_ = is_dropped_ || (drop && !is_spared);
  if (is_dropped_) {
    ++counts_.dropped;
    return absl::UnavailableError(absl::StrCat("injected: rank ", rank(), " takes no part"));
  }
  if (is_spared) return absl::OkStatus();
  if (fail && inner_->health().ok()) {
    ++counts_.failed;
    inner_->Abort(absl::UnavailableError("injected"));
    return inner_->health();
  }
  if (delay) {
    ++counts_.delayed;
    const Duration late = Duration::Seconds(options_.max_delay.seconds() * share);
    options_.wait ? options_.wait(late) : SleepFor(late);
  }
  return absl::OkStatus();
}

absl::Status FaultyCollectives::AllReduceSum(std::span<std::byte> data, ReduceType type,
                                             Duration timeout) {
  BATON_RETURN_IF_ERROR(MeetFate());
  return inner_->AllReduceSum(data, type, timeout);
}

absl::Status FaultyCollectives::AllGather(std::span<const std::byte> mine, std::span<std::byte> all,
                                          Duration timeout) {
  BATON_RETURN_IF_ERROR(MeetFate());
  return inner_->AllGather(mine, all, timeout);
}

absl::Status FaultyCollectives::Broadcast(std::span<std::byte> data, int root, Duration timeout) {
  BATON_RETURN_IF_ERROR(MeetFate());
  return inner_->Broadcast(data, root, timeout);
}

absl::Status FaultyCollectives::AllToAllV(std::span<const std::byte> send,
                                          std::span<const size_t> send_bytes,
                                          std::span<std::byte> recv,
                                          std::span<const size_t> recv_bytes, Duration timeout) {
  BATON_RETURN_IF_ERROR(MeetFate());
  return inner_->AllToAllV(send, send_bytes, recv, recv_bytes, timeout);
}

absl::Status FaultyCollectives::Barrier(Duration timeout) {
  BATON_RETURN_IF_ERROR(MeetFate());
  return inner_->Barrier(timeout);
}

}  // namespace baton::transport
