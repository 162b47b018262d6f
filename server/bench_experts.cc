#include "server/bench_experts.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/random.h"
#include "base/status_macros.h"
#include "scheduler/expert_load.h"
#include "scheduler/expert_placement.h"
#include "scheduler/expert_routing.h"
#include "scheduler/expert_switch.h"
#include "scheduler/rebalance_planner.h"

namespace baton::server {
namespace {

using scheduler::ActiveExperts;
using scheduler::ExpertPlacement;
using scheduler::ExpertTopology;

constexpr Duration kStep = Duration::Millis(1);  // simulated; only intervals see it

absl::Status Check(const char* name, double value, double low, double high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("bench experts: ", name, " is ", value,
                                                 ", allowed are ", low, " to ", high,
                                                 ": choose a value in that range"));
}

absl::Status CheckOptions(const ExpertBenchOptions& o) {
  BATON_RETURN_IF_ERROR(Check("ranks", o.ranks, 1, 1024));
  BATON_RETURN_IF_ERROR(Check("layers", o.layers, 1, 128));
  BATON_RETURN_IF_ERROR(Check("experts", o.experts, 1, 1024));
  BATON_RETURN_IF_ERROR(Check("redundant", o.redundant, 0, 65536));
  BATON_RETURN_IF_ERROR(Check("top-k", o.top_k, 1, o.experts));
  BATON_RETURN_IF_ERROR(Check("tokens", o.tokens, 1, 1e6));
  BATON_RETURN_IF_ERROR(Check("steps", o.steps, 1, 1e6));
  BATON_RETURN_IF_ERROR(Check("exponent", o.exponent, 0, 4));
  BATON_RETURN_IF_ERROR(Check("shift-steps", o.shift_steps, 0, 1e6));
  BATON_RETURN_IF_ERROR(Check("shift-share", o.shift_share, 0, 1));
  BATON_RETURN_IF_ERROR(Check("half-life-steps", o.half_life_steps, 1e-3, 1e6));
  BATON_RETURN_IF_ERROR(Check("interval-steps", o.interval_steps, 1, 1e6));
  BATON_RETURN_IF_ERROR(Check("copies-per-step", o.copies_per_step, 1, 1e6));
  return Check("min-gain", o.min_gain, 0, 1);
}

// The tokens' choices: popularity by a power law over an order of experts that each layer has for
// itself, and that shifts now and then.
class Traffic {
 public:
  explicit Traffic(const ExpertBenchOptions& options)
      : options_(options), rng_(options.seed), order_(options.layers), sums_(options.experts) {
    for (std::vector<int32_t>& order : order_) {
      order.resize(options.experts);
      std::iota(order.begin(), order.end(), 0);
      for (int32_t i = options.experts - 1; i > 0; --i) std::swap(order[i], order[Below(i + 1)]);
    }
    double sum = 0;
    for (int32_t i = 0; i < options.experts; ++i) {
      sums_[i] = sum += std::pow(i + 1.0, -options.exponent);
    }
  }

  // Before the choices of a step, once for each step in order.
  void BeginStep(int32_t step) {
    if (options_.shift_steps == 0 || step == 0 || step % options_.shift_steps != 0) return;
    const auto moves = static_cast<int32_t>(options_.shift_share * options_.experts);
    for (std::vector<int32_t>& order : order_) {
      for (int32_t i = 0; i < moves; ++i) {
        std::swap(order[Below(options_.experts)], order[Below(options_.experts)]);
      }
    }
  }

  // Distinct experts of one token: draws again on a repetition, and after many takes the most
  // popular that are left.
  void Choose(int32_t layer, std::vector<int32_t>& chosen) {
    chosen.clear();
    const std::vector<int32_t>& order = order_[layer];
    const auto add = [&](int32_t expert) {
      if (std::find(chosen.begin(), chosen.end(), expert) == chosen.end()) {
        chosen.push_back(expert);
      }
    };
    const auto full = [&] { return static_cast<int32_t>(chosen.size()) == options_.top_k; };
    for (int32_t draw = 0; draw < 16 * options_.top_k && !full(); ++draw) {
      const double at = rng_.Uniform() * sums_.back();
      const auto it = std::upper_bound(sums_.begin(), sums_.end() - 1, at);
      add(order[it - sums_.begin()]);
    }
    for (int32_t i = 0; i < options_.experts && !full(); ++i) add(order[i]);
  }

  // [layers, experts], up to a factor.
  std::vector<double> Popularity() const {
    std::vector<double> loads(static_cast<size_t>(options_.layers) * options_.experts);
    for (int32_t l = 0; l < options_.layers; ++l) {
      for (int32_t i = 0; i < options_.experts; ++i) {
        loads[static_cast<size_t>(l) * options_.experts + order_[l][i]] =
            std::pow(i + 1.0, -options_.exponent);
      }
    }
    return loads;
  }

 private:
  int32_t Below(int32_t bound) { return static_cast<int32_t>(rng_.Below(bound)); }

  const ExpertBenchOptions& options_;
  Rng rng_;
  std::vector<std::vector<int32_t>> order_;  // [layers]: experts, most popular first
  std::vector<double> sums_;                 // of popularity, up to each place in the order
};

ExpertTopology Topology(const ExpertBenchOptions& options, int32_t redundant) {
  ExpertTopology topology;
  topology.layers = options.layers;
  topology.experts = options.experts;
  topology.ranks = options.ranks;
  topology.slots_per_rank = scheduler::SlotsPerRank(options.experts, redundant, options.ranks);
  return topology;
}

// One mode's group of ranks: counts tokens, and in live mode carries the planner's actions out.
class Group {
 public:
  Group(const ExpertBenchOptions& options, const ExpertTopology& topology,
        const ExpertPlacement& first, bool live)
      : options_(options),
        live_(live),
        load_(options.layers, options.experts, options.half_life_steps) {
    const ActiveExperts active{1, std::make_shared<ExpertPlacement>(first),
                               std::vector<bool>(options.ranks, true)};
    for (int32_t r = 0; r < options.ranks; ++r) slots_.emplace_back(r, 0, active, true);
    work_.resize(options.ranks);
    scheduler::RebalanceOptions rebalance;
    rebalance.topology = topology;
    rebalance.min_gain = options.min_gain;
    rebalance.interval = kStep * options.interval_steps;
    planner_ =
        std::make_unique<scheduler::RebalancePlanner>(rebalance, 0, active, active.live, 2, Tick());
    MakeTables();
  }

  // Time of the step, even = 1.
  absl::StatusOr<double> Step(int32_t step, Traffic& traffic) {
    scheduler::SwitchNotice notice;
    if (live_) notice = StepPlanner(step);
    const uint64_t before = slots_[0].active().version;
    for (scheduler::ExpertSlots& slots : slots_) {
      BATON_RETURN_IF_ERROR(slots.BeginStep(static_cast<uint64_t>(step) + 1, notice));
    }
    if (slots_[0].active().version != before) MakeTables();
    traffic.BeginStep(step);
    double sum_of_max = 0;
    for (int32_t l = 0; l < options_.layers; ++l) sum_of_max += RunLayer(l, step, traffic);
    load_.Advance();
    const double even = static_cast<double>(options_.tokens) * options_.top_k / options_.ranks;
    return sum_of_max / (even * options_.layers);
  }

  int64_t copies = 0;
  int64_t switches = 0;

 private:
  void MakeTables() {
    tables_.clear();
    for (int32_t l = 0; l < options_.layers; ++l) {
      auto table = scheduler::MakeReplicaTable(*slots_[0].active().placement, l, {});
      BATON_CHECK(table.ok());
      tables_.push_back(*std::move(table));
    }
  }

  // Tokens of the most loaded rank.
  double RunLayer(int32_t layer, int32_t step, Traffic& traffic) {
    const scheduler::ReplicaTable& table = tables_[layer];
    const ExpertPlacement& placement = *slots_[0].active().placement;
    std::vector<int32_t> counts(options_.experts);
    std::vector<int32_t> rank_tokens(options_.ranks);
    for (int32_t t = 0; t < options_.tokens; ++t) {
      traffic.Choose(layer, chosen_);
      // Sequence t at its next position.
      const uint32_t hash = scheduler::RowHash(RequestId(static_cast<uint64_t>(t)), step);
      for (int32_t e : chosen_) {
        ++counts[e];
        const int32_t replica = static_cast<int32_t>(hash % static_cast<uint32_t>(table.counts[e]));
        ++rank_tokens[placement.rank_of(table.replicas[e * table.max_replicas + replica])];
      }
    }
    load_.Add(layer, counts);
    return *std::max_element(rank_tokens.begin(), rank_tokens.end());
  }

  scheduler::SwitchNotice StepPlanner(int32_t step) {
    std::vector<scheduler::RebalanceEvent> events = std::exchange(inbox_, {});
    events.emplace_back(
        scheduler::LoadsMeasured{std::make_shared<std::vector<double>>(load_.Loads())});
    events.emplace_back(scheduler::StepStarting{static_cast<uint64_t>(step) + 1});
    scheduler::RebalanceSink sink;
    planner_->Step(Tick() + kStep * step, events, sink);
    copies += sink.report.copies;
    switches += sink.report.switches;
    scheduler::SwitchNotice notice;
    for (const scheduler::RebalanceAction& action : sink.actions) {
      if (const auto* compute = std::get_if<scheduler::ComputePlacement>(&action)) {
        inbox_.emplace_back(scheduler::PlacementComputed{
            compute->ticket, scheduler::PlaceExperts(*compute->request)});
      } else if (const auto* prepare = std::get_if<scheduler::SendPrepare>(&action)) {
        BATON_CHECK(slots_[prepare->rank].Prepare(prepare->message).ok());
        work_[prepare->rank] = prepare->message;
        if (prepare->message.copies.empty()) Answer(prepare->rank);
      } else if (const auto* name = std::get_if<scheduler::NameSwitch>(&action)) {
        notice = name->notice;
      }
    }
    for (int32_t r = 0; r < options_.ranks; ++r) Copy(r);
    return notice;
  }

  void Copy(int32_t rank) {
    scheduler::PrepareExperts& work = work_[rank];
    for (int32_t i = 0; i < options_.copies_per_step && !work.copies.empty(); ++i) {
      const scheduler::ExpertCopy copy = work.copies.back();
      work.copies.pop_back();
      slots_[rank].CopyDone(work.target.version, copy.layer, copy.slot);
      if (work.copies.empty()) Answer(rank);
    }
  }
  void Answer(int32_t rank) {
    inbox_.emplace_back(
        scheduler::PrepareEnded{rank, work_[rank].target.version, absl::OkStatus()});
  }

  const ExpertBenchOptions& options_;
  const bool live_;
  scheduler::ExpertLoad load_;
  std::vector<scheduler::ExpertSlots> slots_;     // of each rank
  std::vector<scheduler::PrepareExperts> work_;   // of each rank: copies to be made
  std::vector<scheduler::ReplicaTable> tables_;   // of each layer
  std::vector<scheduler::RebalanceEvent> inbox_;  // for the planner's next step
  std::unique_ptr<scheduler::RebalancePlanner> planner_;
  std::vector<int32_t> chosen_;
};

double Quantile(std::vector<double> values, double q) {
  const auto at = static_cast<size_t>(std::lround(q * static_cast<double>(values.size() - 1)));
  std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(at), values.end());
  return values[at];
}

absl::StatusOr<ExpertBenchRow> RunMode(const ExpertBenchOptions& options, const char* mode,
                                       const ExpertTopology& topology, const ExpertPlacement& first,
                                       bool live) {
  Traffic traffic(options);
  Group group(options, topology, first, live);
  ExpertBenchRow row;
  row.mode = mode;
  for (int32_t step = 0; step < options.steps; ++step) {
    BATON_ASSIGN_OR_RETURN(const double time, group.Step(step, traffic));
    row.step_times.push_back(time);
    row.balancedness += 1 / time / options.steps;
  }
  row.p50_step_time = Quantile(row.step_times, 0.5);
  row.p99_step_time = Quantile(row.step_times, 0.99);
  row.copies = group.copies;
  row.switches = group.switches;
  return row;
}

}  // namespace

absl::StatusOr<std::vector<ExpertBenchRow>> BenchExperts(const ExpertBenchOptions& options) {
  BATON_RETURN_IF_ERROR(CheckOptions(options));
  const ExpertTopology plain = Topology(options, 0);
  BATON_ASSIGN_OR_RETURN(const ExpertPlacement in_order, ExpertPlacement::InOrder(plain));
  scheduler::PlacementRequest request;
  request.topology = Topology(options, options.redundant);
  request.loads = Traffic(options).Popularity();
  BATON_ASSIGN_OR_RETURN(const scheduler::PlacementResult placed, scheduler::PlaceExperts(request));
  std::vector<ExpertBenchRow> rows;
  BATON_ASSIGN_OR_RETURN(ExpertBenchRow row, RunMode(options, "none", plain, in_order, false));
  rows.push_back(std::move(row));
  BATON_ASSIGN_OR_RETURN(row,
                         RunMode(options, "static", request.topology, placed.placement, false));
  rows.push_back(std::move(row));
  BATON_ASSIGN_OR_RETURN(row, RunMode(options, "live", request.topology, placed.placement, true));
  rows.push_back(std::move(row));
  return rows;
}

}  // namespace baton::server
