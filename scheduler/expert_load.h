#ifndef BATON_SCHEDULER_EXPERT_LOAD_H_
#define BATON_SCHEDULER_EXPERT_LOAD_H_

// How much work each expert gets, and what a placement makes of it. Counts come in as integers and
// steps as numbers: no clock. One thread owns an ExpertLoad; the functions are pure.

#include <cstdint>
#include <span>
#include <vector>

#include "scheduler/expert_placement.h"

namespace baton::scheduler {

// Tokens per layer and logical expert, a step's weight halving every half_life_steps. A group sums
// its ranks' counts by adding them all for the same step.
class ExpertLoad {
 public:
  // layers, experts >= 1; half_life_steps > 0, infinity never forgets.
  ExpertLoad(int32_t layers, int32_t experts, double half_life_steps);

  // tokens: [experts], >= 0: choices of the present step in `layer`.
  void Add(int32_t layer, std::span<const int32_t> tokens);
  // The present step is over, and so are `steps` - 1 more without tokens. steps >= 0.
  void Advance(int64_t steps = 1);

  // [layers, experts]; a choice of the present step counts 1, of the step before 2^(-1/half life).
  std::vector<double> Loads() const;
  // Sum of one layer's loads: how many choices the figures rest on.
  double LayerTokens(int32_t layer) const;

 private:
  const int32_t layers_;
  const int32_t experts_;
  const double growth_per_step_;  // of unit_, instead of decay of every figure
  double unit_ = 1;               // what a choice of the present step adds
  std::vector<double> sums_;      // [layers, experts], in units
};

// Load of each rank in each layer, an expert's load shared evenly by its replicas on live ranks:
// [layers, ranks]. Dead ranks get none, nor does anybody from an expert without a live replica.
// loads: [layers, experts]; live: [ranks], or empty for all.
std::vector<double> RankLoads(const ExpertPlacement& placement, std::span<const double> loads,
                              const std::vector<bool>& live);

// Mean over maximum of the live ranks' loads, in (0, 1]: 1 is even, 1 / ranks is one rank doing
// all. A layer is as slow as its most loaded rank and layers run one after another, so over several
// layers it is the sum of means over the sum of maxima. 1 without load.
double Balancedness(const ExpertPlacement& placement, std::span<const double> loads,
                    const std::vector<bool>& live);
// The same of each layer: [layers].
std::vector<double> LayerBalancedness(const ExpertPlacement& placement,
                                      std::span<const double> loads, const std::vector<bool>& live);

// The share of the experts' time that `to` would save: 1 - sum of maxima under `to` over the same
// under `from`. Negative when `to` is worse; 0 without load.
double PredictedGain(const ExpertPlacement& from, const ExpertPlacement& to,
                     std::span<const double> loads, const std::vector<bool>& live);

}  // namespace baton::scheduler

#endif  // BATON_SCHEDULER_EXPERT_LOAD_H_
