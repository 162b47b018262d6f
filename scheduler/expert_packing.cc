#include "scheduler/expert_packing.h"

#include <algorithm>
#include <numeric>
#include <tuple>
#include <utility>

#include "base/check.h"
#include "scheduler/expert_pack_state.h"

namespace baton::scheduler {
namespace {

// Indices of `loads`, heaviest first, equal ones in their order.
std::vector<int32_t> HeaviestFirst(std::span<const double> loads) {
  std::vector<int32_t> order(loads.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return loads[a] > loads[b]; });
  return order;
}

struct Replication {
  std::vector<int32_t>
      physical;                 // expert of each replica: each expert once, then the rest as given
  std::vector<int32_t> counts;  // replicas of each expert
};

// The expert of at most `cap` replicas with the largest load per replica; -1 when all have more.
// Among experts without load, the one with the fewest replicas.
int32_t MostLoaded(std::span<const double> loads, std::span<const int32_t> counts, int32_t cap) {
  int32_t best = -1;
  double most = 0;
  for (int32_t e = 0; e < static_cast<int32_t>(loads.size()); ++e) {
    if (counts[e] >= cap) continue;
    const double load = loads[e] / counts[e];
    if (best < 0 || load > most || (load == 0 && most == 0 && counts[e] < counts[best])) {
      best = e;
      most = load;
    }
  }
  return best;
}

// Replicas for all slots: first up to `reserve` for every expert, then wherever the load per
// replica is largest among experts below `cap` (where there are any).
Replication Replicate(const PackProblem& problem, int32_t reserve, int32_t cap) {
  Replication out;
  out.physical.resize(problem.loads.size());
  std::iota(out.physical.begin(), out.physical.end(), 0);
  out.counts.assign(problem.loads.size(), 1);
  while (static_cast<int32_t>(out.physical.size()) < problem.slots()) {
    int32_t expert = MostLoaded(problem.loads, out.counts, std::min(reserve, cap));
    if (expert < 0) expert = MostLoaded(problem.loads, out.counts, cap);
    if (expert < 0) expert = MostLoaded(problem.loads, out.counts, problem.slots());
    ++out.counts[expert];
    out.physical.push_back(expert);
  }
  return out;
}

std::vector<double> ReplicaLoads(const PackProblem& problem, const Replication& replication) {
  std::vector<double> loads;
  loads.reserve(replication.physical.size());
  for (int32_t e : replication.physical) loads.push_back(problem.loads[e] / replication.counts[e]);
  return loads;
}

PackedSlots PackPublished(const PackProblem& problem) {
  const Replication replication = Replicate(problem, 1, problem.slots());
  PackedSlots slots = BalancedPacking(ReplicaLoads(problem, replication), problem.ranks);
  for (int32_t& slot : slots) slot = replication.physical[slot];
  return slots;
}

// Heaviest replica first, each to the lightest rank with room: of those that lack the expert and
// would be its second domain, else of those that lack it, else of all.
PackedSlots PackApart(const PackProblem& problem, const Replication& replication) {
  std::vector<std::pair<double, int32_t>> items;  // minus load, expert: sorted, heaviest first
  for (int32_t e : replication.physical) {
    items.emplace_back(-problem.loads[e] / replication.counts[e], e);
  }
  std::sort(items.begin(), items.end());
  std::vector<PackedSlots> packs(problem.ranks);
  std::vector<double> load(problem.ranks);
  std::vector<int32_t> domain_of(problem.loads.size(), -1);  // the only one so far; -2: several
  for (const auto& item : items) {
    const int32_t expert = item.second;
    const auto rank_key = [&](int32_t r) {
      const bool has = std::count(packs[r].begin(), packs[r].end(), expert) > 0;
      const bool same = problem.survive && domain_of[expert] == problem.domains[r];
      return std::make_tuple(has, same, load[r], r);
    };
    int32_t best = -1;
    for (int32_t r = 0; r < problem.ranks; ++r) {
      if (static_cast<int32_t>(packs[r].size()) == problem.slots_per_rank) continue;
      if (best < 0 || rank_key(r) < rank_key(best)) best = r;
    }
    packs[best].push_back(expert);
    load[best] -= item.first;
    int32_t& domain = domain_of[expert];
    if (domain == -1) {
      domain = problem.domains[best];
    } else if (domain != problem.domains[best]) {
      domain = -2;
    }
  }
  PackedSlots slots;
  for (const PackedSlots& pack : packs) slots.insert(slots.end(), pack.begin(), pack.end());
  return slots;
}

std::span<const int32_t> RankSlots(const PackedSlots& slots, int32_t rank, int32_t per_rank) {
  return std::span<const int32_t>(slots).subspan(rank * per_rank, per_rank);
}

bool Holds(std::span<const int32_t> slots, int32_t expert) {
  return std::find(slots.begin(), slots.end(), expert) != slots.end();
}

int32_t DistinctIn(std::span<const int32_t> some, std::span<const int32_t> others, bool present) {
  int32_t count = 0;
  for (size_t i = 0; i < some.size(); ++i) {
    if (!Holds(some.first(i), some[i]) && Holds(others, some[i]) == present) ++count;
  }
  return count;
}

// For each old pack, the new one whose experts it gets: greedily the pairs that share most.
std::vector<int32_t> MatchPacks(const PackedSlots& fresh, const PackedSlots& previous,
                                std::span<const int32_t> class_of, int32_t per_rank) {
  const int32_t ranks = static_cast<int32_t>(class_of.size());
  std::vector<std::tuple<int32_t, int32_t, int32_t>> pairs;  // minus shared, old, new
  for (int32_t o = 0; o < ranks; ++o) {
    for (int32_t n = 0; n < ranks; ++n) {
      if (class_of[o] != class_of[n]) continue;
      const int32_t shared =
          DistinctIn(RankSlots(fresh, n, per_rank), RankSlots(previous, o, per_rank), true);
      if (shared > 0) pairs.emplace_back(-shared, o, n);
    }
  }
  std::sort(pairs.begin(), pairs.end());
  std::vector<int32_t> new_of(ranks, -1);
  std::vector<bool> taken(ranks);
  const auto match = [&](int32_t o, int32_t n) {
    if (new_of[o] >= 0 || taken[n]) return;
    new_of[o] = n;
    taken[n] = true;
  };
  for (const auto& [minus_shared, o, n] : pairs) match(o, n);
  for (int32_t o = 0; o < ranks; ++o) {
    for (int32_t n = 0; n < ranks && new_of[o] < 0; ++n) {
      if (class_of[o] == class_of[n]) match(o, n);
    }
  }
  return new_of;
}

}  // namespace

std::vector<int32_t> BalancedPacking(std::span<const double> loads, int32_t packs) {
  const int32_t per_pack = static_cast<int32_t>(loads.size()) / packs;
  BATON_CHECK_EQ(per_pack * packs, static_cast<int32_t>(loads.size()));
  std::vector<int32_t> items(loads.size());
  if (per_pack == 1) {
    std::iota(items.begin(), items.end(), 0);
    return items;
  }
  std::vector<double> load(packs);
  std::vector<int32_t> filled(packs);
  for (int32_t item : HeaviestFirst(loads)) {
    int32_t best = -1;
    for (int32_t p = 0; p < packs; ++p) {
      if (filled[p] < per_pack && (best < 0 || load[p] < load[best])) best = p;
    }
    items[best * per_pack + filled[best]++] = item;
    load[best] += loads[item];
  }
  return items;
}

PackedSlots PackExperts(const PackProblem& problem) {
  if (problem.survive) {
    PackState apart(problem, PackApart(problem, Replicate(problem, 2, problem.ranks)));
    apart.Protect();
    apart.Balance();
    return apart.slots();
  }
  PackState published(problem, PackPublished(problem));
  published.Balance();
  if (!published.HasDuplicates()) return published.slots();
  // Two replicas on one rank balance no better than one: give the slot to somebody else, unless
  // the packing comes out worse.
  PackState apart(problem, PackApart(problem, Replicate(problem, 1, problem.ranks)));
  apart.Balance();
  return apart.MaxLoad() <= published.MaxLoad() ? apart.slots() : published.slots();
}

std::optional<PackedSlots> AdaptPacking(const PackProblem& problem, const PackedSlots& previous,
                                        double target, int32_t max_copies) {
  for (int32_t e = 0; e < problem.experts(); ++e) {
    if (!Holds(previous, e)) return std::nullopt;
  }
  PackState state(problem, previous);
  state.Protect();
  state.Adapt(target, max_copies);
  if (state.MaxLoad() > target) return std::nullopt;
  return state.slots();
}

double MaxRankLoad(const PackProblem& problem, const PackedSlots& slots) {
  return PackState(problem, slots).MaxLoad();
}

int32_t PackPenalty(const PackProblem& problem, const PackedSlots& slots) {
  return PackState(problem, slots).penalty();
}

PackedSlots ExchangePacks(const PackedSlots& fresh, const PackedSlots& previous,
                          std::span<const int32_t> class_of, int32_t per_pack) {
  PackedSlots out;
  out.reserve(fresh.size());
  for (int32_t pack : MatchPacks(fresh, previous, class_of, per_pack)) {
    const auto slots = RankSlots(fresh, pack, per_pack);
    out.insert(out.end(), slots.begin(), slots.end());
  }
  return out;
}

PackedSlots KeepSlots(const PackedSlots& fresh, const PackedSlots& previous,
                      int32_t slots_per_rank) {
  PackedSlots out(fresh.size(), -1);
  const int32_t ranks = static_cast<int32_t>(fresh.size()) / slots_per_rank;
  for (int32_t r = 0; r < ranks; ++r) {
    const auto coming_span = RankSlots(fresh, r, slots_per_rank);
    PackedSlots coming(coming_span.begin(), coming_span.end());
    const int32_t first = r * slots_per_rank;
    for (int32_t s = first; s < first + slots_per_rank; ++s) {
      const auto it = std::find(coming.begin(), coming.end(), previous[s]);
      if (it == coming.end()) continue;
      out[s] = previous[s];
      coming.erase(it);
    }
    auto next = coming.begin();
    for (int32_t s = first; s < first + slots_per_rank; ++s) {
      if (out[s] < 0) out[s] = *next++;
    }
  }
  return out;
}

int32_t PackingCopies(const PackedSlots& from, const PackedSlots& to, int32_t slots_per_rank) {
  const int32_t ranks = static_cast<int32_t>(to.size()) / slots_per_rank;
  int32_t copies = 0;
  for (int32_t r = 0; r < ranks; ++r) {
    copies +=
        DistinctIn(RankSlots(to, r, slots_per_rank), RankSlots(from, r, slots_per_rank), false);
  }
  return copies;
}

}  // namespace baton::scheduler
