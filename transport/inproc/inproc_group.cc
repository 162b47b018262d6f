#include "transport/inproc/inproc_group.h"

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "transport/group/exchange_collectives.h"
#include "transport/inproc/inproc_exchange.h"

namespace baton::transport {
namespace {

constexpr Duration kLongestSleep = Duration::Millis(100);

// A rank that waits in Join.
struct Candidate {
  GroupOptions options;
  std::optional<absl::StatusOr<std::unique_ptr<Collectives>>> result;
};

// The ranks of one group id that wait at present. Candidates live on their threads' stacks.
struct Forming {
  std::map<int, Candidate*> candidates;
  std::string turned_away;  // why, for the message of those who wait in vain
  uint64_t generation = 0;  // of the last group that was formed
};

}  // namespace

struct InprocGroups::Board {
  std::shared_ptr<Clock> clock;
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::string, Forming> groups;  // guarded by mutex, by group id
};

namespace {

using Board = InprocGroups::Board;

void TurnAway(Forming* forming, Candidate* candidate, const absl::Status& why) {
  forming->turned_away = std::string(why.message());
  forming->candidates.erase(candidate->options.rank);
  candidate->result.emplace(why);
}

// Refuses those who do not fit the host that they expect, once it is there.
void Compare(Forming* forming, int host_rank) {
  const auto host = forming->candidates.find(host_rank);
  if (host == forming->candidates.end()) return;
  const GroupOptions ours = host->second->options;
  const std::map<int, Candidate*> all = forming->candidates;
  for (const auto& [rank, candidate] : all) {
    if (HostRank(candidate->options) != host_rank) continue;
    const absl::Status same = CheckSameGroup(ours, candidate->options);
    if (!same.ok()) TurnAway(forming, candidate, same);
  }
}

// Those whom the host counts as absent, or who expect another, go on waiting.
void FormIfComplete(Board* board, Forming* forming, int host) {
  const auto found = forming->candidates.find(host);
  if (found == forming->candidates.end()) return;
  const GroupOptions options = found->second->options;
  std::vector<int> present;
  std::vector<std::string> names(static_cast<size_t>(options.world_size));
  for (const auto& [rank, candidate] : forming->candidates) {
    if (IsAbsent(options, rank) || HostRank(candidate->options) != host) continue;
    present.push_back(rank);
    names[static_cast<size_t>(rank)] = candidate->options.name;
  }
  const size_t wanted = static_cast<size_t>(options.world_size) - options.absent_ranks.size();
  if (present.size() != wanted) return;
  std::vector<std::unique_ptr<Exchange>> exchanges =
      MakeInprocExchanges(present, names, board->clock);
  ++forming->generation;
  for (const int rank : present) {
    Candidate* candidate = forming->candidates.at(rank);
    candidate->result.emplace(
        MakeExchangeCollectives(candidate->options, forming->generation,
                                std::move(exchanges[static_cast<size_t>(rank)]), board->clock));
    forming->candidates.erase(rank);
  }
  forming->turned_away.clear();
}

class InprocRendezvous final : public Rendezvous {
 public:
  explicit InprocRendezvous(std::shared_ptr<Board> board) : board_(std::move(board)) {}

  absl::StatusOr<std::unique_ptr<Collectives>> Join(const GroupOptions& options) override {
    BATON_RETURN_IF_ERROR(CheckGroupOptions(options));
    const Tick deadline = board_->clock->Now() + options.timeout;
    Candidate me{.options = options, .result = std::nullopt};
    std::unique_lock<std::mutex> lock(board_->mutex);
    last_ = options;
    Forming& forming = board_->groups[options.group_id];
    if (!forming.candidates.emplace(options.rank, &me).second) {
      return absl::FailedPreconditionError(absl::StrCat("group '", options.group_id,
                                                        "': ", RankName(options.rank, options.name),
                                                        " waits already; start each rank once"));
    }
    Compare(&forming, HostRank(options));
    FormIfComplete(board_.get(), &forming, HostRank(options));
    board_->changed.notify_all();
    while (!me.result.has_value()) {
      const Duration left = deadline - board_->clock->Now();
      if (left <= Duration::Nanos(0)) return GiveUp(&forming, options);
      board_->changed.wait_for(lock,
                               std::chrono::nanoseconds(std::min(left, kLongestSleep).nanos()));
    }
    return *std::move(me.result);
  }

  std::vector<int> Knocking() override {
    std::lock_guard<std::mutex> lock(board_->mutex);
    std::vector<int> ranks;
    if (last_.has_value()) {
      for (const auto& [rank, candidate] : board_->groups[last_->group_id].candidates) {
        ranks.push_back(rank);
      }
    }
    return ranks;
  }

 private:
  static absl::Status GiveUp(Forming* forming, const GroupOptions& options) {
    std::vector<int> missing;
    for (int rank = 0; rank < options.world_size; ++rank) {
      if (!IsAbsent(options, rank) && !forming->candidates.contains(rank)) missing.push_back(rank);
    }
    forming->candidates.erase(options.rank);
    const std::vector<std::string> names(static_cast<size_t>(options.world_size));
    return MissingRanksError(options, missing, names, forming->turned_away);
  }

  const std::shared_ptr<Board> board_;
  std::optional<GroupOptions> last_;  // of the last Join; guarded by board_->mutex
};

}  // namespace

InprocGroups::InprocGroups(std::shared_ptr<Clock> clock) : board_(std::make_shared<Board>()) {
  board_->clock = std::move(clock);
}

std::unique_ptr<Rendezvous> InprocGroups::NewRendezvous() {
  return std::make_unique<InprocRendezvous>(board_);
}

}  // namespace baton::transport
