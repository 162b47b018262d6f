#include "transport/transfer_ledger.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace baton::transport {

absl::StatusOr<TransferId> TransferLedger::Open() {
  if (transfers_.size() >= max_transfers_) {
    return absl::ResourceExhaustedError(
        absl::StrCat("Prepare: ", transfers_.size(),
                     " transfers are open, the most this endpoint allows; Release some"));
  }
  const TransferId id(next_transfer_++);
  transfers_.emplace(id, Transfer());
  return id;
}

absl::Status TransferLedger::CheckOpen(TransferId id) const {
  const auto it = transfers_.find(id);
  if (it == transfers_.end() || it->second.released || it->second.lost) {
    return absl::FailedPreconditionError(
        absl::StrCat("transfer ", id.value(), " was lost or released; Prepare a new one"));
  }
  return absl::OkStatus();
}

absl::Status TransferLedger::TooMany(const char* what) const {
  return absl::ResourceExhaustedError(absl::StrCat(max_posts_, " ", what,
                                                   " are in flight, the most this endpoint "
                                                   "allows; Poll, then try again"));
}

absl::Status TransferLedger::Post(TransferId id) {
  BATON_RETURN_IF_ERROR(CheckOpen(id));
  if (posts_in_flight_ >= max_posts_) return TooMany("posts");
  ++posts_in_flight_;
  ++transfers_.at(id).posts;
  return absl::OkStatus();
}

absl::Status TransferLedger::CheckNotify(TransferId id, uint32_t in_flight) const {
  BATON_RETURN_IF_ERROR(CheckOpen(id));
  return in_flight >= max_posts_ ? TooMany("notifies") : absl::OkStatus();
}

bool TransferLedger::Release(TransferId id) {
  const auto it = transfers_.find(id);
  return it != transfers_.end() && !std::exchange(it->second.released, true);
}

void TransferLedger::Account(const KvEvent& event) {
  switch (event.kind) {
    case KvEventKind::kSent:
      --posts_in_flight_;
      --transfers_.at(event.transfer).posts;
      return;
    case KvEventKind::kPeerLost: {
      Transfer& transfer = transfers_.at(event.transfer);
      transfer.lost = true;
      posts_in_flight_ -= std::exchange(transfer.posts, 0);
      return;
    }
    case KvEventKind::kReleased:
      transfers_.erase(event.transfer);
      return;
    case KvEventKind::kReceived:
    case KvEventKind::kNotified:
      return;
  }
}

}  // namespace baton::transport
