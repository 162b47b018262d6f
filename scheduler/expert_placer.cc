// PlaceExperts: checks, then layer by layer. The arithmetic is in scheduler/expert_packing.

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "scheduler/expert_packing.h"
#include "scheduler/expert_placement.h"

namespace baton::scheduler {
namespace {

absl::Status CheckLoads(const PlacementRequest& request) {
  const ExpertTopology& topology = request.topology;
  const size_t expected = static_cast<size_t>(topology.layers) * topology.experts;
  if (request.loads.size() != expected) {
    return absl::InvalidArgumentError(absl::StrCat(
        "expert placement: ", request.loads.size(), " loads given, expected ", topology.layers,
        " layers x ", topology.experts, " experts = ", expected, ": give one for each"));
  }
  for (size_t i = 0; i < expected; ++i) {
    if (std::isfinite(request.loads[i]) && request.loads[i] >= 0) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("expert placement: the load of layer ", i / topology.experts, ", expert ",
                     i % topology.experts, " is ", request.loads[i],
                     ", allowed are finite values from 0: count tokens"));
  }
  return absl::OkStatus();
}

absl::Status CheckPrevious(const PlacementRequest& request) {
  const ExpertTopology& topology = request.topology;
  if (request.previous == nullptr) return absl::OkStatus();
  const ExpertPlacement& previous = *request.previous;
  if (previous.layers() == topology.layers && previous.experts() == topology.experts &&
      previous.ranks() == topology.ranks && previous.slots_per_rank() == topology.slots_per_rank) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "expert placement: the previous placement has ", previous.layers(), " layers, ",
      previous.experts(), " experts, ", previous.ranks(), " ranks and ", previous.slots_per_rank(),
      " slots per rank, expected ", topology.layers, ", ", topology.experts, ", ", topology.ranks,
      " and ", topology.slots_per_rank, ": leave it out when the group's shape changes"));
}

absl::Status CheckLive(const PlacementRequest& request) {
  const ExpertTopology& topology = request.topology;
  if (request.live.empty()) return absl::OkStatus();
  if (static_cast<int32_t>(request.live.size()) != topology.ranks) {
    return absl::InvalidArgumentError(absl::StrCat("expert placement: live has ",
                                                   request.live.size(), " entries, expected ",
                                                   topology.ranks, ": one for each rank, or none"));
  }
  const int64_t live = std::count(request.live.begin(), request.live.end(), true);
  if (live * topology.slots_per_rank < topology.experts) {
    return absl::InvalidArgumentError(
        absl::StrCat("expert placement: ", live, " live ranks have ",
                     live * topology.slots_per_rank, " slots, fewer than the ", topology.experts,
                     " experts: bring ranks back or start the group with more slots per rank"));
  }
  if (live < topology.ranks && request.previous == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("expert placement: ", topology.ranks - live,
                     " ranks are not live, and there is no previous placement: give the one that "
                     "they had"));
  }
  return absl::OkStatus();
}

// Why the hierarchical policy cannot be used; OK when it can.
absl::Status CheckHierarchical(const PlacementRequest& request) {
  const ExpertTopology& t = request.topology;
  std::string why;
  if (t.experts % t.groups != 0) {
    why = absl::StrCat(t.experts, " experts do not divide into ", t.groups, " groups");
  } else if (t.groups % t.nodes() != 0) {
    why = absl::StrCat(t.groups, " groups do not divide over ", t.nodes(), " nodes");
  } else if (std::count(request.live.begin(), request.live.end(), false) > 0) {
    why = "some ranks are not live";
  } else {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("expert placement: the hierarchical policy needs "
                   "equal groups on equal nodes, but ",
                   why, ": use policy auto or global"));
}

// --- one layer ------------------------------------------------------------------------------

// The experts and ranks that are packed together: all, or a node's share.
struct Part {
  std::vector<int32_t> experts;
  int32_t first_rank = 0;
  int32_t ranks = 0;
};

// Over the ranks that take part, numbered without gaps.
class LayerPlacer {
 public:
  LayerPlacer(const ExpertTopology& topology, bool hierarchical, bool survive, double keep_slack)
      : topology_(topology),
        hierarchical_(hierarchical),
        survive_(survive),
        keep_slack_(keep_slack) {}

  // previous: nullable, [slots].
  PackedSlots Place(const std::vector<double>& loads, const PackedSlots* previous) const {
    PackedSlots fresh;
    for (const Part& part : FreshParts(loads)) {
      const PackedSlots packed = PackExperts(Problem(part, loads));
      for (int32_t local : packed) fresh.push_back(part.experts[local]);
    }
    if (previous == nullptr) return fresh;
    fresh = Align(fresh, *previous);
    std::optional<PackedSlots> kept = Adapt(loads, fresh, *previous);
    return kept.has_value() ? *std::move(kept) : fresh;
  }

 private:
  Part Everything() const {
    Part all;
    all.experts.resize(topology_.experts);
    std::iota(all.experts.begin(), all.experts.end(), 0);
    all.ranks = topology_.ranks;
    return all;
  }

  int32_t group_size() const { return topology_.experts / topology_.groups; }

  std::vector<Part> NodeParts() const {
    std::vector<Part> parts(topology_.nodes());
    const int32_t ranks = topology_.ranks / topology_.nodes();
    for (int32_t n = 0; n < topology_.nodes(); ++n) parts[n] = {{}, n * ranks, ranks};
    return parts;
  }
  void AddGroup(int32_t group, Part& part) const {
    for (int32_t i = 0; i < group_size(); ++i) part.experts.push_back(group * group_size() + i);
  }

  std::vector<Part> FreshParts(const std::vector<double>& loads) const {
    if (!hierarchical_) return {Everything()};
    std::vector<double> group_loads(topology_.groups);
    for (int32_t e = 0; e < topology_.experts; ++e) group_loads[e / group_size()] += loads[e];
    std::vector<Part> parts = NodeParts();
    const std::vector<int32_t> packed = BalancedPacking(group_loads, topology_.nodes());
    const size_t per_node = packed.size() / parts.size();
    for (size_t i = 0; i < packed.size(); ++i) AddGroup(packed[i], parts[i / per_node]);
    return parts;
  }

  // The parts of a placement that is there; nothing when it does not keep groups on nodes.
  std::optional<std::vector<Part>> PartsOf(const PackedSlots& slots) const {
    if (!hierarchical_) return std::vector<Part>{Everything()};
    std::vector<int32_t> node_of(topology_.groups, -1);
    for (int32_t s = 0; s < topology_.slots(); ++s) {
      int32_t& node = node_of[slots[s] / group_size()];
      const int32_t here = topology_.node_of(s / topology_.slots_per_rank);
      if (node >= 0 && node != here) return std::nullopt;
      node = here;
    }
    std::vector<Part> parts = NodeParts();
    for (int32_t g = 0; g < topology_.groups; ++g) {
      if (node_of[g] < 0) return std::nullopt;
      AddGroup(g, parts[node_of[g]]);
    }
    for (const Part& part : parts) {
      if (part.experts.size() != parts[0].experts.size()) return std::nullopt;
    }
    return parts;
  }

  PackProblem Problem(const Part& part, const std::vector<double>& loads) const {
    PackProblem problem;
    for (int32_t e : part.experts) problem.loads.push_back(loads[e]);
    problem.ranks = part.ranks;
    problem.slots_per_rank = topology_.slots_per_rank;
    problem.survive = survive_;
    std::map<int32_t, int32_t> first_of;  // domain -> its first rank, as its number
    for (int32_t r = 0; r < part.ranks; ++r) {
      problem.domains.push_back(
          first_of.try_emplace(topology_.domain_of(part.first_rank + r), r).first->second);
    }
    return problem;
  }

  // The same balance in other ranks and slots, nearer to `previous`.
  PackedSlots Align(const PackedSlots& fresh, const PackedSlots& previous) const {
    const int32_t per_rank = topology_.slots_per_rank;
    std::vector<int32_t> class_of(topology_.ranks);
    std::map<std::pair<int32_t, int32_t>, int32_t> classes;
    for (int32_t r = 0; r < topology_.ranks; ++r) {
      const std::pair<int32_t, int32_t> key(hierarchical_ ? topology_.node_of(r) : 0,
                                            survive_ ? topology_.domain_of(r) : 0);
      class_of[r] = classes.try_emplace(key, r).first->second;
    }
    std::vector<PackedSlots> candidates = {fresh,
                                           ExchangePacks(fresh, previous, class_of, per_rank)};
    if (hierarchical_ && (!survive_ || topology_.domains.empty())) {
      const std::vector<int32_t> one_class(topology_.nodes());
      const PackedSlots moved =
          ExchangePacks(fresh, previous, one_class, topology_.slots() / topology_.nodes());
      candidates.push_back(ExchangePacks(moved, previous, class_of, per_rank));
    }
    const auto best = std::min_element(
        candidates.begin(), candidates.end(), [&](const PackedSlots& a, const PackedSlots& b) {
          return PackingCopies(previous, a, per_rank) < PackingCopies(previous, b, per_rank);
        });
    return KeepSlots(*best, previous, per_rank);
  }

  // `previous`, changed just enough; nothing when `fresh` is better in balance, protection or
  // copies.
  std::optional<PackedSlots> Adapt(const std::vector<double>& loads, const PackedSlots& fresh,
                                   const PackedSlots& previous) const {
    const std::optional<std::vector<Part>> parts = PartsOf(previous);
    if (!parts.has_value()) return std::nullopt;
    const PackProblem whole = Problem(Everything(), loads);
    const double target = MaxRankLoad(whole, fresh) * (1 + keep_slack_);
    const int32_t copies = PackingCopies(previous, fresh, topology_.slots_per_rank);
    PackedSlots kept;
    for (const Part& part : *parts) {
      const auto first = previous.begin() + part.first_rank * topology_.slots_per_rank;
      PackedSlots local(first, first + part.ranks * topology_.slots_per_rank);
      for (int32_t& expert : local) {
        const auto it = std::find(part.experts.begin(), part.experts.end(), expert);
        expert = static_cast<int32_t>(it - part.experts.begin());
      }
      // Changes may cancel out, so more than `copies` of them can still be fewer copies.
      const auto packed = AdaptPacking(Problem(part, loads), local, target, 2 * copies);
      if (!packed.has_value()) return std::nullopt;
      for (int32_t expert : *packed) kept.push_back(part.experts[expert]);
    }
    kept = KeepSlots(kept, previous, topology_.slots_per_rank);
    if (MaxRankLoad(whole, kept) > target) return std::nullopt;
    if (PackPenalty(whole, kept) > PackPenalty(whole, fresh)) return std::nullopt;
    if (PackingCopies(previous, kept, topology_.slots_per_rank) > copies) return std::nullopt;
    return kept;
  }

  const ExpertTopology& topology_;
  const bool hierarchical_;
  const bool survive_;
  const double keep_slack_;
};

// --- all layers -----------------------------------------------------------------------------

std::vector<int32_t> LiveRanks(const PlacementRequest& request) {
  std::vector<int32_t> ranks;
  for (int32_t r = 0; r < request.topology.ranks; ++r) {
    if (request.live.empty() || request.live[r]) ranks.push_back(r);
  }
  return ranks;
}

// The topology of the live ranks alone; nodes matter no more once some are missing.
ExpertTopology TopologyOf(const ExpertTopology& topology, const std::vector<int32_t>& ranks) {
  ExpertTopology part = topology;
  part.ranks = static_cast<int32_t>(ranks.size());
  part.domains.clear();
  for (int32_t r : ranks) part.domains.push_back(topology.domain_of(r));
  if (part.ranks != topology.ranks) {
    part.ranks_per_node = 0;
  } else if (topology.domains.empty()) {
    part.domains.clear();
  }
  return part;
}

std::vector<double> LayerLoads(const PlacementRequest& request, int32_t layer) {
  const auto first =
      request.loads.begin() + static_cast<ptrdiff_t>(layer) * request.topology.experts;
  std::vector<double> loads(first, first + request.topology.experts);
  if (std::all_of(loads.begin(), loads.end(), [](double load) { return load == 0; })) {
    std::fill(loads.begin(), loads.end(), 1.0);
  }
  return loads;
}

void CountRisks(const PlacementRequest& request, PlacementResult& result) {
  const ExpertTopology& topology = request.topology;
  for (int32_t l = 0; l < topology.layers; ++l) {
    for (int32_t e = 0; e < topology.experts; ++e) {
      std::set<int32_t> ranks;
      std::set<int32_t> domains;
      for (int32_t slot : result.placement.Replicas(l, e)) {
        const int32_t rank = result.placement.rank_of(slot);
        if (!request.live.empty() && !request.live[rank]) continue;
        ranks.insert(rank);
        domains.insert(topology.domain_of(rank));
      }
      result.on_one_rank += ranks.size() == 1;
      result.on_one_domain += domains.size() == 1;
    }
  }
}

absl::Status CheckRequest(const PlacementRequest& request) {
  BATON_RETURN_IF_ERROR(CheckTopology(request.topology));
  BATON_RETURN_IF_ERROR(CheckLoads(request));
  BATON_RETURN_IF_ERROR(CheckPrevious(request));
  BATON_RETURN_IF_ERROR(CheckLive(request));
  if (!std::isfinite(request.keep_slack) || request.keep_slack < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("expert placement: keep_slack is ", request.keep_slack,
                     ", allowed are finite values from 0: 0.02 accepts 2% more load"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<PlacementResult> PlaceExperts(const PlacementRequest& request) {
  BATON_RETURN_IF_ERROR(CheckRequest(request));
  const absl::Status hierarchical = CheckHierarchical(request);
  if (request.policy == PlacementPolicy::kHierarchical) BATON_RETURN_IF_ERROR(hierarchical);
  PlacementResult result;
  result.policy = request.policy != PlacementPolicy::kGlobal && hierarchical.ok()
                      ? PlacementPolicy::kHierarchical
                      : PlacementPolicy::kGlobal;

  const std::vector<int32_t> ranks = LiveRanks(request);
  const ExpertTopology live = TopologyOf(request.topology, ranks);
  const LayerPlacer placer(live, result.policy == PlacementPolicy::kHierarchical,
                           request.survive_rank_loss, request.keep_slack);
  const ExpertPlacement* const previous = request.previous.get();
  const int32_t per_rank = request.topology.slots_per_rank;
  std::vector<int32_t> slots;
  for (int32_t l = 0; l < request.topology.layers; ++l) {
    PackedSlots all(request.topology.slots(), 0);
    if (previous != nullptr) all.assign(previous->Slots(l).begin(), previous->Slots(l).end());
    PackedSlots before;
    for (int32_t r : ranks) {
      before.insert(before.end(), all.begin() + r * per_rank, all.begin() + (r + 1) * per_rank);
    }
    const PackedSlots placed =
        placer.Place(LayerLoads(request, l), previous != nullptr ? &before : nullptr);
    for (size_t i = 0; i < ranks.size(); ++i) {
      const auto first = placed.begin() + static_cast<ptrdiff_t>(i) * per_rank;
      std::copy(first, first + per_rank, all.begin() + ranks[i] * per_rank);
    }
    slots.insert(slots.end(), all.begin(), all.end());
  }
  BATON_ASSIGN_OR_RETURN(result.placement,
                         ExpertPlacement::FromSlots(request.topology, std::move(slots)));
  CountRisks(request, result);
  for (int32_t r : ranks) {
    if (previous != nullptr) result.copies += CountCopies(*previous, result.placement, r);
  }
  return result;
}

absl::StatusOr<ExpertPlacement> StartingPlacement(const ExpertTopology& topology,
                                                  PlacementPolicy policy, bool survive_rank_loss) {
  PlacementRequest request;
  request.topology = topology;
  request.loads.assign(static_cast<size_t>(topology.layers) * static_cast<size_t>(topology.experts),
                       1.0);
  request.policy = policy;
  request.survive_rank_loss = survive_rank_loss;
  BATON_ASSIGN_OR_RETURN(PlacementResult placed, PlaceExperts(request));
  return std::move(placed.placement);
}

}  // namespace baton::scheduler
