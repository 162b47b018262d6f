#include "scheduler/expert_routing.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/random.h"

namespace baton::scheduler {
namespace {

bool IsLive(const std::vector<bool>& live, int32_t rank) {
  return live.empty() || live[static_cast<size_t>(rank)];
}

void CheckLive(const ExpertPlacement& placement, const std::vector<bool>& live) {
  BATON_CHECK(live.empty() || live.size() == static_cast<size_t>(placement.ranks()));
}

// Live ranks that hold the expert.
int32_t RanksOf(const ExpertPlacement& placement, int32_t layer, int32_t expert,
                const std::vector<bool>& live) {
  int32_t ranks = 0;
  int32_t last = -1;  // replicas ascend, so one rank's stand together
  for (int32_t slot : placement.Replicas(layer, expert)) {
    const int32_t rank = placement.rank_of(slot);
    ranks += rank != last && IsLive(live, rank);
    last = rank;
  }
  return ranks;
}

int32_t CountHeldBy(const ExpertPlacement& placement, const std::vector<bool>& live,
                    int32_t ranks) {
  CheckLive(placement, live);
  int32_t count = 0;
  for (int32_t l = 0; l < placement.layers(); ++l) {
    for (int32_t e = 0; e < placement.experts(); ++e) {
      count += RanksOf(placement, l, e, live) == ranks;
    }
  }
  return count;
}

// A split that is being evened out. One slot per expert and rank takes part: a second replica on
// the same rank adds nothing.
class Splitter {
 public:
  Splitter(const ExpertPlacement& placement, int32_t layer, const std::vector<bool>& live)
      : placement_(placement),
        slots_(placement.Slots(layer)),
        holders_(placement.experts()),
        slot_tokens_(slots_.size()),
        load_(placement.ranks()) {
    for (int32_t e = 0; e < placement.experts(); ++e) {
      for (int32_t slot : placement.Replicas(layer, e)) {
        const int32_t rank = placement.rank_of(slot);
        if (!IsLive(live, rank)) continue;
        if (!holders_[e].empty() && placement.rank_of(holders_[e].back()) == rank) continue;
        holders_[e].push_back(slot);
      }
    }
  }

  // Experts with the fewest choices first, each poured onto its lightest ranks.
  void Pour(std::span<const int32_t> tokens) {
    std::vector<int32_t> order(holders_.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return holders_[a].size() < holders_[b].size(); });
    for (int32_t e : order) {
      BATON_CHECK_GE(tokens[e], 0);
      BATON_CHECK_MSG(tokens[e] == 0 || !holders_[e].empty(), "tokens for an uncovered expert");
      if (tokens[e] > 0) PourOne(e, tokens[e]);
    }
  }

  // Moves tokens from the most loaded rank along chains of shared experts to a rank with at least
  // two fewer, until there is no such chain. Then the ranks that it reaches hold tokens that no
  // others can take, and are level: no split is better. Each round levels two ranks or empties an
  // (expert, rank) pair; the bound is far above what is ever needed.
  void Level() {
    const size_t max_rounds = 64 + 16 * slots_.size();
    for (size_t round = 0; round < max_rounds; ++round) {
      const int32_t heaviest =
          static_cast<int32_t>(std::max_element(load_.begin(), load_.end()) - load_.begin());
      if (!MoveFrom(heaviest)) return;
    }
  }

  std::vector<int32_t> Take() { return std::move(slot_tokens_); }

 private:
  int32_t RankOf(int32_t slot) const { return placement_.rank_of(slot); }

  void PourOne(int32_t expert, int32_t tokens) {
    std::vector<int32_t> holders = holders_[expert];
    std::stable_sort(holders.begin(), holders.end(),
                     [&](int32_t a, int32_t b) { return load_[RankOf(a)] < load_[RankOf(b)]; });
    // The lightest `used` ranks are filled to one level.
    int64_t sum = tokens;
    size_t used = 0;
    while (used < holders.size() &&
           (used == 0 || load_[RankOf(holders[used])] * static_cast<int64_t>(used) < sum)) {
      sum += load_[RankOf(holders[used++])];
    }
    int64_t left = tokens;
    for (size_t i = 0; i < used; ++i) {
      const int32_t rank = RankOf(holders[i]);
      const int64_t rest = static_cast<int64_t>(used - i);
      const int64_t level = (sum + rest - 1) / rest;  // the lightest take the odd tokens
      const int64_t share = std::clamp<int64_t>(level - load_[rank], 0, left);
      sum -= load_[rank] + share;
      left -= share;
      load_[rank] += share;
      slot_tokens_[holders[i]] += static_cast<int32_t>(share);
    }
    BATON_CHECK_EQ(left, 0);
  }

  struct Hop {
    int32_t from = -1;  // slots of one expert; -1: not reached
    int32_t to = -1;
  };

  bool MoveFrom(int32_t heaviest) {
    std::vector<Hop> hop_to(load_.size());  // of each rank
    std::vector<int32_t> reached = {heaviest};
    for (size_t i = 0; i < reached.size(); ++i) {
      const int32_t first = reached[i] * placement_.slots_per_rank();
      for (int32_t s = first; s < first + placement_.slots_per_rank(); ++s) {
        if (slot_tokens_[s] == 0) continue;
        for (int32_t to : holders_[slots_[s]]) {
          if (RankOf(to) == heaviest || hop_to[RankOf(to)].from >= 0) continue;
          hop_to[RankOf(to)] = {s, to};
          reached.push_back(RankOf(to));
        }
      }
    }
    const int32_t lightest = *std::min_element(
        reached.begin(), reached.end(), [&](int32_t a, int32_t b) { return load_[a] < load_[b]; });
    int64_t amount = (load_[heaviest] - load_[lightest]) / 2;
    if (amount == 0) return false;
    for (int32_t r = lightest; r != heaviest; r = RankOf(hop_to[r].from)) {
      amount = std::min<int64_t>(amount, slot_tokens_[hop_to[r].from]);
    }
    for (int32_t r = lightest; r != heaviest; r = RankOf(hop_to[r].from)) {
      slot_tokens_[hop_to[r].from] -= static_cast<int32_t>(amount);
      slot_tokens_[hop_to[r].to] += static_cast<int32_t>(amount);
    }
    load_[heaviest] -= amount;
    load_[lightest] += amount;
    return true;
  }

  const ExpertPlacement& placement_;
  const std::span<const int32_t> slots_;
  std::vector<std::vector<int32_t>> holders_;  // slots of each expert, one on each live rank
  std::vector<int32_t> slot_tokens_;
  std::vector<int64_t> load_;  // tokens of each rank
};

}  // namespace

int32_t CountUncovered(const ExpertPlacement& placement, const std::vector<bool>& live) {
  return CountHeldBy(placement, live, 0);
}

int32_t CountOnOneRank(const ExpertPlacement& placement, const std::vector<bool>& live) {
  return CountHeldBy(placement, live, 1);
}

absl::StatusOr<ReplicaTable> MakeReplicaTable(const ExpertPlacement& placement, int32_t layer,
                                              const std::vector<bool>& live) {
  CheckLive(placement, live);
  std::vector<std::vector<int32_t>> lists(placement.experts());
  ReplicaTable table;
  for (int32_t e = 0; e < placement.experts(); ++e) {
    std::vector<int32_t>& list = lists[e];
    for (int32_t slot : placement.Replicas(layer, e)) {
      if (IsLive(live, placement.rank_of(slot))) list.push_back(slot);
    }
    if (list.empty()) {
      return absl::FailedPreconditionError(
          absl::StrCat("expert ", e, " of MoE layer ", layer,
                       " has no replica on a live rank: bring a rank back, or start the group anew "
                       "with redundant experts"));
    }
    std::rotate(list.begin(), list.begin() + e % static_cast<int32_t>(list.size()), list.end());
    table.counts.push_back(static_cast<int32_t>(list.size()));
    table.max_replicas = std::max(table.max_replicas, table.counts.back());
  }
  for (std::vector<int32_t>& list : lists) {
    list.resize(table.max_replicas, list[0]);
    table.replicas.insert(table.replicas.end(), list.begin(), list.end());
  }
  return table;
}

uint32_t RowHash(RequestId request, int32_t position) {
  Rng mixed(request.value() + static_cast<uint64_t>(position) * 0xD1342543DE82EF95ull);
  return static_cast<uint32_t>(mixed.Next() >> 32);
}

std::vector<int32_t> SplitTokens(const ExpertPlacement& placement, int32_t layer,
                                 const std::vector<bool>& live, std::span<const int32_t> tokens) {
  CheckLive(placement, live);
  BATON_CHECK_EQ(tokens.size(), static_cast<size_t>(placement.experts()));
  Splitter splitter(placement, layer, live);
  splitter.Pour(tokens);
  splitter.Level();
  return splitter.Take();
}

void AssignSlots(const ExpertPlacement& placement, int32_t layer,
                 std::span<const int32_t> slot_tokens, std::span<const int32_t> experts,
                 std::span<int32_t> physical) {
  BATON_CHECK_EQ(slot_tokens.size(), static_cast<size_t>(placement.slots()));
  BATON_CHECK_EQ(experts.size(), physical.size());
  std::vector<size_t> replica(placement.experts());  // the one being filled, of each expert
  std::vector<int32_t> left(slot_tokens.begin(), slot_tokens.end());
  for (size_t i = 0; i < experts.size(); ++i) {
    const int32_t e = experts[i];
    const auto replicas = placement.Replicas(layer, e);
    size_t& at = replica[e];
    while (at < replicas.size() && left[replicas[at]] == 0) ++at;
    BATON_CHECK_MSG(at < replicas.size(), "more choices of an expert than its slots were given");
    --left[replicas[at]];
    physical[i] = replicas[at];
  }
}

}  // namespace baton::scheduler
