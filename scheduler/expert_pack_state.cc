#include "scheduler/expert_pack_state.h"

#include <algorithm>
#include <limits>
#include <set>
#include <utility>

namespace baton::scheduler {
namespace {

// A change must lower the most loaded rank by more than rounding could.
constexpr double kBetter = 1.0 - 1e-9;

}  // namespace

PackState::PackState(const PackProblem& problem, PackedSlots slots)
    : problem_(problem),
      ranks_(problem.ranks),
      slots_(std::move(slots)),
      counts_(problem.loads.size()),
      on_rank_(problem.loads.size() * ranks_),
      in_domain_(problem.loads.size() * ranks_),
      ranks_of_(problem.loads.size()),
      domains_of_(problem.loads.size()),
      load_(ranks_) {
  domain_count_ = static_cast<int32_t>(
      std::set<int32_t>(problem.domains.begin(), problem.domains.end()).size());
  penalty_ = problem_.experts() * Penalty(0, 0);
  for (int32_t s = 0; s < problem_.slots(); ++s) Count(slots_[s], RankOf(s), 1);
  for (int32_t r = 0; r < ranks_; ++r) Sum(r);
}

double PackState::MaxLoad() const { return *std::max_element(load_.begin(), load_.end()); }

int32_t PackState::HeaviestRank() const {
  return static_cast<int32_t>(std::max_element(load_.begin(), load_.end()) - load_.begin());
}

bool PackState::HasDuplicates() const {
  return std::any_of(on_rank_.begin(), on_rank_.end(), [](int32_t n) { return n > 1; });
}

// --- bookkeeping ----------------------------------------------------------------------------

int32_t PackState::Penalty(int32_t ranks, int32_t domains) const {
  if (!problem_.survive) return 0;
  return (ranks < 2 ? 2 : 0) + (domains < 2 && domain_count_ > 1 ? 1 : 0);
}

int32_t PackState::PenaltyAfter(int32_t expert, int32_t from, int32_t to) const {
  if (!problem_.survive) return 0;
  int32_t ranks = ranks_of_[expert];
  int32_t domains = domains_of_[expert];
  if (from >= 0 && On(expert, from) == 1) --ranks;
  if (to >= 0 && On(expert, to) == 0) ++ranks;
  const int32_t left = from >= 0 ? problem_.domains[from] : -1;
  const int32_t entered = to >= 0 ? problem_.domains[to] : -1;
  if (left != entered) {
    if (left >= 0 && InDomain(expert, left) == 1) --domains;
    if (entered >= 0 && InDomain(expert, entered) == 0) ++domains;
  }
  return Penalty(ranks, domains);
}

int32_t PackState::SwapPenalty(int32_t a, int32_t b) const {
  if (!problem_.survive) return 0;
  const int32_t x = slots_[a];
  const int32_t y = slots_[b];
  return PenaltyAfter(x, RankOf(a), RankOf(b)) - Penalty(ranks_of_[x], domains_of_[x]) +
         PenaltyAfter(y, RankOf(b), RankOf(a)) - Penalty(ranks_of_[y], domains_of_[y]);
}

bool PackState::SpreadsDuplicates(int32_t a, int32_t b) const {
  return On(slots_[a], RankOf(b)) == 0 && On(slots_[b], RankOf(a)) == 0;
}

void PackState::Count(int32_t expert, int32_t rank, int32_t change) {
  penalty_ -= Penalty(ranks_of_[expert], domains_of_[expert]);
  int32_t& on_rank = on_rank_[expert * ranks_ + rank];
  int32_t& in_domain = in_domain_[expert * ranks_ + problem_.domains[rank]];
  ranks_of_[expert] -= on_rank > 0;
  domains_of_[expert] -= in_domain > 0;
  on_rank += change;
  in_domain += change;
  counts_[expert] += change;
  ranks_of_[expert] += on_rank > 0;
  domains_of_[expert] += in_domain > 0;
  penalty_ += Penalty(ranks_of_[expert], domains_of_[expert]);
}

// From scratch and in slot order, so that no history of changes shows in the sum.
void PackState::Sum(int32_t rank) {
  load_[rank] = 0;
  const int32_t first = rank * problem_.slots_per_rank;
  for (int32_t s = first; s < first + problem_.slots_per_rank; ++s) {
    load_[rank] += PerReplica(slots_[s]);
  }
}

void PackState::Swap(int32_t a, int32_t b) {
  Count(slots_[a], RankOf(a), -1);
  Count(slots_[b], RankOf(b), -1);
  std::swap(slots_[a], slots_[b]);
  Count(slots_[a], RankOf(a), 1);
  Count(slots_[b], RankOf(b), 1);
  Sum(RankOf(a));
  Sum(RankOf(b));
}

void PackState::Replace(int32_t slot, int32_t expert) {
  Count(slots_[slot], RankOf(slot), -1);
  slots_[slot] = expert;
  Count(expert, RankOf(slot), 1);
  for (int32_t r = 0; r < ranks_; ++r) Sum(r);
}

void PackState::Apply(const Change& change) {
  if (change.other >= 0) {
    Swap(change.slot, change.other);
  } else {
    Replace(change.slot, change.expert);
  }
}

// --- search ---------------------------------------------------------------------------------

PackState::Change PackState::BestSwap(int32_t heaviest, double limit) const {
  Change best;
  best.max_load = limit;
  const int32_t first = heaviest * problem_.slots_per_rank;
  for (int32_t a = first; a < first + problem_.slots_per_rank; ++a) {
    const double mine = PerReplica(slots_[a]);
    for (int32_t b = 0; b < problem_.slots(); ++b) {
      const int32_t rank = RankOf(b);
      if (rank == heaviest) continue;
      const double moved = mine - PerReplica(slots_[b]);
      const double after = std::max(load_[heaviest] - moved, load_[rank] + moved);
      if (moved <= 0 || after >= best.max_load || !SpreadsDuplicates(a, b)) continue;
      if (SwapPenalty(a, b) > 0) continue;
      best = {a, b, -1, after};
    }
  }
  return best;
}

double PackState::LoadAfter(int32_t slot, int32_t expert, double limit) const {
  const int32_t home = RankOf(slot);
  const int32_t gone = slots_[slot];
  const double less = problem_.loads[gone] / (counts_[gone] - 1);
  const double more = problem_.loads[expert] / (counts_[expert] + 1);
  const double gone_change = less - PerReplica(gone);      // >= 0, for each replica that stays
  const double expert_change = more - PerReplica(expert);  // <= 0, for each replica that was
  const auto after = [&](int32_t r) {
    return load_[r] + On(gone, r) * gone_change + On(expert, r) * expert_change +
           (r == home ? more - less : 0.0);
  };
  double max_load = after(home);
  for (int32_t r = 0; r < ranks_ && max_load < limit; ++r) {
    if (On(gone, r) > 0 || On(expert, r) > 0) max_load = std::max(max_load, after(r));
  }
  return std::min(max_load, limit);
}

PackState::Change PackState::BestReplacement(int32_t heaviest, double limit) const {
  Change best;
  best.max_load = limit;
  const auto consider = [&](int32_t slot, int32_t expert) {
    const int32_t rank = RankOf(slot);
    const int32_t gone = slots_[slot];
    if (counts_[gone] < 2 || On(expert, rank) > 0) return;
    const double after = LoadAfter(slot, expert, best.max_load);
    if (after >= best.max_load) return;
    const int32_t before = Penalty(ranks_of_[gone], domains_of_[gone]) +
                           Penalty(ranks_of_[expert], domains_of_[expert]);
    if (PenaltyAfter(gone, rank, -1) + PenaltyAfter(expert, -1, rank) > before) return;
    best = {slot, -1, expert, after};
  };
  const int32_t first = heaviest * problem_.slots_per_rank;
  for (int32_t a = first; a < first + problem_.slots_per_rank; ++a) {
    // Another replica of what the heaviest rank holds, anywhere else ...
    for (int32_t b = 0; b < problem_.slots(); ++b) {
      if (RankOf(b) != heaviest) consider(b, slots_[a]);
    }
    // ... or something lighter in its own slot.
    for (int32_t expert = 0; expert < problem_.experts(); ++expert) consider(a, expert);
  }
  return best;
}

void PackState::Balance() {
  for (int32_t step = 0; step < 2 * problem_.slots(); ++step) {
    const int32_t heaviest = HeaviestRank();
    const Change change = BestSwap(heaviest, load_[heaviest] * kBetter);
    if (change.slot < 0) return;
    Apply(change);
  }
}

void PackState::Adapt(double target, int32_t max_copies) {
  int32_t copies = 0;
  while (MaxLoad() > target && copies < max_copies) {
    const int32_t heaviest = HeaviestRank();
    const double load = load_[heaviest];
    const Change replacement = BestReplacement(heaviest, load * kBetter);
    const Change swap = BestSwap(heaviest, load * kBetter);
    if (replacement.slot < 0 && swap.slot < 0) return;
    // By what is won per copy: an exchange takes two.
    const bool exchange =
        replacement.slot < 0 ||
        (swap.slot >= 0 && (load - swap.max_load) / 2 > load - replacement.max_load);
    Apply(exchange ? swap : replacement);
    copies += exchange ? 2 : 1;
  }
}

PackState::Change PackState::BestProtectingSwap(int32_t expert) const {
  Change best;
  for (int32_t a = 0; a < problem_.slots(); ++a) {
    if (slots_[a] != expert) continue;
    for (int32_t b = 0; b < problem_.slots(); ++b) {
      if (RankOf(b) == RankOf(a) || !SpreadsDuplicates(a, b) || SwapPenalty(a, b) >= 0) continue;
      const double moved = PerReplica(slots_[a]) - PerReplica(slots_[b]);
      const double after = std::max(load_[RankOf(a)] - moved, load_[RankOf(b)] + moved);
      if (best.slot < 0 || after < best.max_load) best = {a, b, -1, after};
    }
  }
  return best;
}

PackState::Change PackState::BestProtectingReplacement(int32_t expert) const {
  Change best;
  for (int32_t s = 0; s < problem_.slots(); ++s) {
    const int32_t gone = slots_[s];
    const int32_t rank = RankOf(s);
    if (counts_[gone] < 2 || On(expert, rank) > 0) continue;
    const int32_t before = Penalty(ranks_of_[gone], domains_of_[gone]) +
                           Penalty(ranks_of_[expert], domains_of_[expert]);
    if (PenaltyAfter(gone, rank, -1) + PenaltyAfter(expert, -1, rank) >= before) continue;
    const double after = LoadAfter(s, expert, std::numeric_limits<double>::infinity());
    if (best.slot < 0 || after < best.max_load) best = {s, -1, expert, after};
  }
  return best;
}

bool PackState::ProtectOne(int32_t expert) {
  if (Penalty(ranks_of_[expert], domains_of_[expert]) == 0) return false;
  Change change = BestProtectingSwap(expert);
  if (change.slot < 0) change = BestProtectingReplacement(expert);
  if (change.slot < 0) return false;
  Apply(change);
  return true;
}

void PackState::Protect() {
  // Each change lowers the penalty, but may pass a smaller one on to an expert that was visited.
  bool changed = problem_.survive;
  while (changed) {
    changed = false;
    for (int32_t expert = 0; expert < problem_.experts(); ++expert) {
      while (ProtectOne(expert)) changed = true;
    }
  }
}

}  // namespace baton::scheduler
