#include "scheduler/expert_load.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace baton::scheduler {
namespace {

// Before unit_ leaves what a double holds with room for sums.
constexpr double kLargestUnit = 1e100;

// Sum over layers of the mean and of the maximum rank load.
struct Sums {
  double mean = 0;
  double max = 0;
  double balancedness() const { return max > 0 ? mean / max : 1.0; }
};

Sums SumOf(std::span<const double> rank_loads, const std::vector<bool>& live) {
  Sums sums;
  double total = 0;
  int32_t ranks = 0;
  for (size_t r = 0; r < rank_loads.size(); ++r) {
    if (!live.empty() && !live[r]) continue;
    total += rank_loads[r];
    sums.max = std::max(sums.max, rank_loads[r]);
    ++ranks;
  }
  BATON_CHECK_GT(ranks, 0);
  sums.mean = total / ranks;
  return sums;
}

Sums SumOf(const ExpertPlacement& placement, std::span<const double> loads,
           const std::vector<bool>& live) {
  const std::vector<double> all = RankLoads(placement, loads, live);
  Sums sums;
  for (int32_t l = 0; l < placement.layers(); ++l) {
    const auto layer =
        std::span<const double>(all).subspan(l * placement.ranks(), placement.ranks());
    const Sums one = SumOf(layer, live);
    sums.mean += one.mean;
    sums.max += one.max;
  }
  return sums;
}

}  // namespace

ExpertLoad::ExpertLoad(int32_t layers, int32_t experts, double half_life_steps)
    : layers_(layers),
      experts_(experts),
      growth_per_step_(std::exp2(1.0 / half_life_steps)),
      sums_(static_cast<size_t>(layers) * experts) {
  BATON_CHECK(layers >= 1 && experts >= 1 && half_life_steps > 0);
}

void ExpertLoad::Add(int32_t layer, std::span<const int32_t> tokens) {
  BATON_CHECK(layer >= 0 && layer < layers_);
  BATON_CHECK_EQ(tokens.size(), static_cast<size_t>(experts_));
  double* const sums = &sums_[static_cast<size_t>(layer) * experts_];
  for (int32_t e = 0; e < experts_; ++e) {
    BATON_CHECK_GE(tokens[e], 0);
    sums[e] += tokens[e] * unit_;
  }
}

void ExpertLoad::Advance(int64_t steps) {
  BATON_CHECK_GE(steps, 0);
  const double growth = std::pow(growth_per_step_, static_cast<double>(steps));
  if (unit_ * growth <= kLargestUnit) {
    unit_ *= growth;
    return;
  }
  // Back to units of 1; what has decayed below a double's range becomes 0.
  for (double& sum : sums_) sum = sum / unit_ / growth;
  unit_ = 1;
}

std::vector<double> ExpertLoad::Loads() const {
  std::vector<double> loads = sums_;
  for (double& load : loads) load /= unit_;
  return loads;
}

double ExpertLoad::LayerTokens(int32_t layer) const {
  BATON_CHECK(layer >= 0 && layer < layers_);
  const auto first = sums_.begin() + static_cast<ptrdiff_t>(layer) * experts_;
  return std::accumulate(first, first + experts_, 0.0) / unit_;
}

std::vector<double> RankLoads(const ExpertPlacement& placement, std::span<const double> loads,
                              const std::vector<bool>& live) {
  BATON_CHECK_EQ(loads.size(), static_cast<size_t>(placement.layers()) * placement.experts());
  BATON_CHECK(live.empty() || live.size() == static_cast<size_t>(placement.ranks()));
  const auto is_live = [&](int32_t slot) { return live.empty() || live[placement.rank_of(slot)]; };
  std::vector<double> rank_loads(static_cast<size_t>(placement.layers()) * placement.ranks());
  for (int32_t l = 0; l < placement.layers(); ++l) {
    double* const layer = &rank_loads[static_cast<size_t>(l) * placement.ranks()];
    for (int32_t e = 0; e < placement.experts(); ++e) {
      const auto replicas = placement.Replicas(l, e);
      const auto count = std::count_if(replicas.begin(), replicas.end(), is_live);
      const double load = loads[static_cast<size_t>(l) * placement.experts() + e];
      for (int32_t slot : replicas) {
        if (is_live(slot)) layer[placement.rank_of(slot)] += load / static_cast<double>(count);
      }
    }
  }
  return rank_loads;
}

double Balancedness(const ExpertPlacement& placement, std::span<const double> loads,
                    const std::vector<bool>& live) {
  return SumOf(placement, loads, live).balancedness();
}

std::vector<double> LayerBalancedness(const ExpertPlacement& placement,
                                      std::span<const double> loads,
                                      const std::vector<bool>& live) {
  const std::vector<double> all = RankLoads(placement, loads, live);
  std::vector<double> balancedness;
  for (int32_t l = 0; l < placement.layers(); ++l) {
    const auto layer =
        std::span<const double>(all).subspan(l * placement.ranks(), placement.ranks());
    balancedness.push_back(SumOf(layer, live).balancedness());
  }
  return balancedness;
}

double PredictedGain(const ExpertPlacement& from, const ExpertPlacement& to,
                     std::span<const double> loads, const std::vector<bool>& live) {
  const double before = SumOf(from, loads, live).max;
  return before > 0 ? 1 - SumOf(to, loads, live).max / before : 0.0;
}

}  // namespace baton::scheduler
