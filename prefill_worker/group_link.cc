#include "prefill_worker/group_link.h"

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"

namespace baton::prefill_worker {
namespace {

// No command is near this: it bounds what a rank of another mind could make this one allocate.
constexpr uint64_t kMaxBytes = uint64_t{1} << 30;

}  // namespace

absl::Status GroupLink::Exchange(std::span<const std::byte> mine) {
  const size_t ranks = static_cast<size_t>(collectives_.world_size());
  const uint64_t size = mine.size();
  sizes_.assign(ranks, 0);
  collectives_.Ring();
  BATON_RETURN_IF_ERROR(collectives_.AllGather(
      std::as_bytes(std::span(&size, 1)), std::as_writable_bytes(std::span(sizes_)), timeout_));
  for (size_t rank = 0; rank < ranks; ++rank) {
    if (sizes_[rank] <= kMaxBytes) continue;
    absl::Status status =
        absl::InternalError(absl::StrCat("rank ", rank, " of the prefill group announced ",
                                         sizes_[rank], " bytes, expected at most ", kMaxBytes));
    collectives_.Abort(status);
    return status;
  }
  command_.resize(sizes_[kLeader]);
  if (rank() == kLeader) command_.assign(mine.begin(), mine.end());
  BATON_RETURN_IF_ERROR(collectives_.Broadcast(command_, kLeader, timeout_));

  std::vector<size_t> send(ranks, 0), receive(ranks, 0);
  size_t received = 0;
  if (rank() == kLeader) {
    for (size_t r = 1; r < ranks; ++r) received += receive[r] = sizes_[r];
  } else {
    send[kLeader] = mine.size();
  }
  for (const uint64_t reported : std::span(sizes_).subspan(1)) {
    if (reported == 0) continue;
    reports_.resize(received);
    const std::span<const std::byte> out = rank() == kLeader ? std::span<const std::byte>() : mine;
    return collectives_.AllToAllV(out, send, reports_, receive, timeout_);
  }
  reports_.clear();  // nobody has anything to report, and all know it
  return absl::OkStatus();
}

std::span<const std::byte> GroupLink::report(int rank) const {
  BATON_CHECK(this->rank() == kLeader && rank > 0 && rank < ranks());
  size_t begin = 0;
  for (int r = 1; r < rank; ++r) begin += sizes_[static_cast<size_t>(r)];
  return std::span(reports_).subspan(begin, sizes_[static_cast<size_t>(rank)]);
}

}  // namespace baton::prefill_worker
