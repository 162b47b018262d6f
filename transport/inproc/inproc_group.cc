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
#include "transport/group/survivors.h"
#include "transport/inproc/inproc_exchange.h"

namespace baton::transport {
namespace {

constexpr Duration kLongestSleep = Duration::Millis(100);
constexpr Duration kShortSleep = Duration::Millis(5);  // where news come from elsewhere, too
// With guests, who wait already and may have gone by now.
constexpr Duration kGuestPatience = Duration::Millis(300);

// A rank that waits in Join or Regroup.
struct Candidate {
  GroupOptions options;
  std::optional<absl::StatusOr<std::unique_ptr<Collectives>>> result;
  // Where it regroups; else null. Its own thread's.
  Survivors* survivors = nullptr;
  RegroupOptions regroup;
  int host = 0;
  Tick host_since;
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
    if (candidate->survivors != nullptr || HostRank(candidate->options) != host_rank) continue;
    const absl::Status same = CheckSameGroup(ours, candidate->options);
    if (!same.ok()) TurnAway(forming, candidate, same);
  }
}

void FormOf(Board* board, Forming* forming, const std::vector<int>& present) {
  const int world_size = forming->candidates.at(present.front())->options.world_size;
  std::vector<std::string> names(static_cast<size_t>(world_size));
  for (const int rank : present) {
    names[static_cast<size_t>(rank)] = forming->candidates.at(rank)->options.name;
  }
  std::vector<std::unique_ptr<Exchange>> exchanges =
      MakeInprocExchanges(present, names, board->clock);
  ++forming->generation;
  for (const int rank : present) {
    Candidate* candidate = forming->candidates.at(rank);
    GroupOptions options = candidate->options;
    options.absent_ranks = AbsentRanks(world_size, present);
    candidate->result.emplace(
        MakeExchangeCollectives(options, forming->generation,
                                std::move(exchanges[static_cast<size_t>(rank)]), board->clock));
    forming->candidates.erase(rank);
  }
  forming->turned_away.clear();
  board->changed.notify_all();
}

// Those whom the host counts as absent, or who expect another, go on waiting.
void FormIfComplete(Board* board, Forming* forming, int host) {
  const auto found = forming->candidates.find(host);
  if (found == forming->candidates.end() || found->second->survivors != nullptr) return;
  const GroupOptions options = found->second->options;
  std::vector<int> present;
  for (const auto& [rank, candidate] : forming->candidates) {
    if (candidate->survivors != nullptr || IsAbsent(options, rank) ||
        HostRank(candidate->options) != host) {
      continue;
    }
    present.push_back(rank);
  }
  const size_t wanted = static_cast<size_t>(options.world_size) - options.absent_ranks.size();
  if (present.size() == wanted) FormOf(board, forming, present);
}

// What a rank that regroups learns from the others that do, and the host that follows from it.
void FindHost(const Forming& forming, Tick now, Candidate* me) {
  me->survivors->Update();
  for (const auto& [rank, other] : forming.candidates) {
    if (other->survivors != nullptr) me->survivors->Lose(other->options.absent_ranks);
  }
  const bool is_silent =
      !forming.candidates.contains(me->host) && now - me->host_since > me->regroup.patience * 2;
  if (me->host != me->options.rank && is_silent) me->survivors->Lose(me->host);
  me->options.absent_ranks = me->survivors->lost();  // for the others
  const int host = me->survivors->host();
  if (host == me->host) return;
  me->host = host;
  me->host_since = now;
}

// `me` regroups. As Rendezvous::Regroup says.
void RegroupIfComplete(Board* board, Forming* forming, Candidate* me) {
  const Tick now = board->clock->Now();
  FindHost(*forming, now, me);
  const int self = me->options.rank;
  if (me->host != self) return;
  const Duration waited = now - me->host_since;
  const bool has_patience = waited < me->regroup.patience;
  std::vector<int> present;
  for (int rank = 0; rank < me->options.world_size; ++rank) {
    const auto found = forming->candidates.find(rank);
    const bool is_guest =
        std::binary_search(me->regroup.guests.begin(), me->regroup.guests.end(), rank);
    const bool is_here =
        found != forming->candidates.end() &&
        (found->second->survivors != nullptr ? found->second->host == self : is_guest);
    if (is_here) {
      present.push_back(rank);
    } else if ((me->survivors->Expects(rank) && has_patience) ||
               (is_guest && waited < kGuestPatience && has_patience)) {
      return;
    }
  }
  FormOf(board, forming, present);
}

class InprocRendezvous final : public Rendezvous {
 public:
  explicit InprocRendezvous(std::shared_ptr<Board> board) : board_(std::move(board)) {}

  absl::StatusOr<std::unique_ptr<Collectives>> Join(const GroupOptions& options) override {
    BATON_RETURN_IF_ERROR(CheckGroupOptions(options));
    Candidate me;
    me.options = options;
    return Await(&me);
  }

  absl::StatusOr<std::unique_ptr<Collectives>> Regroup(const GroupOptions& options,
                                                       const RegroupOptions& regroup,
                                                       const Collectives& before) override {
    BATON_RETURN_IF_ERROR(CheckGroupOptions(options));
    Survivors survivors(before);
    Candidate me;
    me.options = options;
    me.options.absent_ranks = survivors.lost();
    me.survivors = &survivors;
    me.regroup = regroup;
    me.host = survivors.host();
    me.host_since = board_->clock->Now();
    return Await(&me);
  }

  std::vector<int> Knocking() override {
    std::lock_guard<std::mutex> lock(board_->mutex);
    std::vector<int> ranks;
    if (!last_.has_value()) return ranks;
    for (const auto& [rank, candidate] : board_->groups[last_->group_id].candidates) {
      if (candidate->survivors != nullptr) continue;
      GroupOptions ours = *last_;
      ours.absent_ranks = candidate->options.absent_ranks;
      if (CheckSameGroup(ours, candidate->options).ok()) ranks.push_back(rank);
    }
    return ranks;
  }

 private:
  absl::StatusOr<std::unique_ptr<Collectives>> Await(Candidate* me) {
    const GroupOptions options = me->options;
    const Tick deadline = board_->clock->Now() + options.timeout;
    std::unique_lock<std::mutex> lock(board_->mutex);
    last_ = options;
    Forming& forming = board_->groups[options.group_id];
    if (!forming.candidates.emplace(options.rank, me).second) {
      return absl::FailedPreconditionError(absl::StrCat("group '", options.group_id,
                                                        "': ", RankName(options.rank, options.name),
                                                        " waits already; start each rank once"));
    }
    if (me->survivors == nullptr) {
      Compare(&forming, HostRank(options));
      FormIfComplete(board_.get(), &forming, HostRank(options));
    }
    board_->changed.notify_all();
    while (!me->result.has_value()) {
      if (me->survivors != nullptr) RegroupIfComplete(board_.get(), &forming, me);
      if (me->result.has_value()) break;
      const Duration left = deadline - board_->clock->Now();
      if (left <= Duration::Nanos(0)) return GiveUp(&forming, options);
      const Duration longest = me->survivors != nullptr ? kShortSleep : kLongestSleep;
      board_->changed.wait_for(lock, std::chrono::nanoseconds(std::min(left, longest).nanos()));
    }
    return *std::move(me->result);
  }

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
