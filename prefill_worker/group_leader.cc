#include "prefill_worker/group_leader.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"

namespace baton::prefill_worker {

using scheduler::HandoffFinished;

void GroupLeader::Open(const scheduler::OpenHandoff& open) {
  command_.handoffs.emplace_back(open);
  const bool inserted = open_.emplace(open.key, Shares{.missing = link_.ranks()}).second;
  BATON_CHECK(inserted);
}

void GroupLeader::Abort(RequestKey key) {
  std::erase_if(over_, [key](const HandoffFinished& finished) { return finished.key == key; });
  if (open_.erase(key) > 0) command_.handoffs.emplace_back(scheduler::AbortHandoff{key});
}

absl::Status GroupLeader::Announce(const scheduler::RunPrefillPass* pass) {
  GroupCommand command = std::exchange(command_, {});
  command.pass = pass;
  BATON_RETURN_IF_ERROR(link_.Exchange(EncodeCommand(command)));
  for (int rank = 1; rank < link_.ranks(); ++rank) {
    absl::StatusOr<std::vector<HandoffFinished>> results = DecodeResults(link_.report(rank));
    if (!results.ok()) {
      link_.Abort(results.status());
      return results.status();
    }
    for (const HandoffFinished& share : *results) Count(share, rank);
  }
  return absl::OkStatus();
}

absl::Status GroupLeader::Stop() {
  GroupCommand command = std::exchange(command_, {});
  command.stop = true;
  return link_.Exchange(EncodeCommand(command));
}

void GroupLeader::Count(const HandoffFinished& share, int rank) {
  const auto it = open_.find(share.key);
  if (it == open_.end()) return;  // aborted, or failed on another rank, in the meantime
  Shares& shares = it->second;
  shares.messages += share.messages_posted;
  shares.bytes += share.bytes_posted;
  if (!share.status.ok()) {
    over_.push_back({share.key,
                     absl::Status(share.status.code(),
                                  absl::StrCat("rank ", rank,
                                               " of the prefill group: ", share.status.message())),
                     shares.messages, shares.bytes});
    open_.erase(it);
    command_.handoffs.emplace_back(scheduler::AbortHandoff{share.key});
    if (rank != GroupLink::kLeader) sender_.Abort(share.key);
    return;
  }
  if (--shares.missing > 0) return;
  over_.push_back({share.key, absl::OkStatus(), shares.messages, shares.bytes});
  open_.erase(it);
}

std::vector<HandoffFinished> GroupLeader::Merge(const std::vector<HandoffFinished>& own) {
  for (const HandoffFinished& share : own) Count(share, GroupLink::kLeader);
  return std::exchange(over_, {});
}

}  // namespace baton::prefill_worker
