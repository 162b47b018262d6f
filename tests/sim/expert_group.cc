#include "tests/sim/expert_group.h"

#include <algorithm>
#include <numeric>
#include <type_traits>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace baton::sim {
namespace {

using scheduler::ActiveExperts;
using scheduler::RebalanceEnd;
using scheduler::RebalanceEvent;
using scheduler::SwitchNotice;

constexpr double kHalfLifeSteps = 64;
constexpr uint64_t kMeasureEvery = 16;  // steps
constexpr uint64_t kDriftEvery = 256;
constexpr int64_t kCopyMicros = 200;  // at most, of one expert

}  // namespace

void ExpertTotals::Add(const ExpertTotals& more) {
  steps += more.steps;
  switches += more.switches;
  installed += more.installed;
  rolled_back += more.rolled_back;
  masked_steps += more.masked_steps;
  takeovers += more.takeovers;
  restored += more.restored;
  stopped += more.stopped;
  first_mean += more.first_mean;
  first_most += more.first_most;
  later_mean += more.later_mean;
  later_most += more.later_most;
}

ExpertGroup::ExpertGroup(const ExpertGroupOptions& options, EventQueue& queue,
                         std::function<void(const std::string&)> problem)
    : options_(options),
      queue_(queue),
      problem_(std::move(problem)),
      rng_(options.seed),
      ranks_(static_cast<size_t>(options.ranks)),
      load_(options.layers, options.experts, kHalfLifeSteps) {
  rebalance_.topology.layers = options.layers;
  rebalance_.topology.experts = options.experts;
  rebalance_.topology.ranks = options.ranks;
  rebalance_.topology.slots_per_rank = options.slots_per_rank;
  rebalance_.topology.ranks_per_node = options.ranks_per_node;
  rebalance_.survive_rank_loss = true;
  rebalance_.interval = Duration::Millis(40);
  rebalance_.compute_timeout = Duration::Millis(60);
  rebalance_.prepare_timeout = Duration::Millis(120);
  rebalance_.restore_retry = Duration::Millis(20);
  for (int32_t layer = 0; layer < options.layers; ++layer) {
    std::vector<int32_t> order(static_cast<size_t>(options.experts));
    std::iota(order.begin(), order.end(), 0);
    for (size_t i = order.size() - 1; i > 0; --i) std::swap(order[i], order[rng_.Below(i + 1)]);
    popularity_.push_back(std::move(order));
  }
}

void ExpertGroup::Form() {
  scheduler::PlacementRequest request;
  request.topology = rebalance_.topology;
  request.loads.assign(static_cast<size_t>(options_.layers * options_.experts), 1.0);
  request.survive_rank_loss = true;
  auto placed = scheduler::PlaceExperts(request);
  BATON_CHECK_MSG(placed.ok(), placed.status().ToString());
  const ActiveExperts first{
      1, std::make_shared<scheduler::ExpertPlacement>(std::move(placed->placement)),
      std::vector<bool>(ranks_.size(), true)};
  for (size_t r = 0; r < ranks_.size(); ++r) {
    ranks_[r] = {};
    ranks_[r].slots =
        std::make_unique<scheduler::ExpertSlots>(static_cast<int32_t>(r), 0, first, true);
  }
  pending_.clear();
  leader_ = 0;
  ++life_;
  ++term_;
  planner_ = std::make_unique<scheduler::RebalancePlanner>(rebalance_, 0, first, Present(), 2,
                                                           queue_.now());
}

std::vector<bool> ExpertGroup::Present() const {
  std::vector<bool> present;
  for (const Rank& rank : ranks_) present.push_back(rank.slots != nullptr);
  return present;
}

bool ExpertGroup::WantsSteps() const { return formed() && (planner_->WantsSteps() || !whole()); }

bool ExpertGroup::whole() const {
  return formed() && planner_->active().live == std::vector<bool>(ranks_.size(), true);
}

// --- messages and copies --------------------------------------------------------------------

void ExpertGroup::Post(Duration longest, std::function<void()> deliver) {
  if (rng_.Chance(options_.lost_message)) return;
  const auto delay = static_cast<int64_t>(rng_.Below(static_cast<uint64_t>(longest.nanos()) + 1));
  queue_.After(Duration::Nanos(delay), [this, life = life_, deliver = std::move(deliver)] {
    if (formed() && life == life_) deliver();
  });
}

void ExpertGroup::Carry(const scheduler::ComputePlacement& compute) {
  Post(Duration::Millis(20), [this, compute, term = term_] {
    if (term != term_) return;
    pending_.push_back(
        scheduler::PlacementComputed{compute.ticket, scheduler::PlaceExperts(*compute.request)});
  });
}

void ExpertGroup::Carry(const scheduler::SendPrepare& send) {
  Post(Duration::Millis(1), [this, send] { Receive(send.rank, send.message); });
}

void ExpertGroup::Carry(const scheduler::SendAbort& send) {
  Post(Duration::Millis(1), [this, send] {
    Rank& rank = ranks_[static_cast<size_t>(send.rank)];
    if (rank.slots != nullptr) rank.slots->Abort(send.message.version);
  });
}

void ExpertGroup::Carry(const scheduler::RebalanceEnded& ended) {
  totals_.installed += ended.end == RebalanceEnd::kInstalled ? 1 : 0;
  totals_.rolled_back += ended.end == RebalanceEnd::kRolledBack ? 1 : 0;
}

void ExpertGroup::Tell(int32_t rank, uint64_t version, const absl::Status& status) {
  Post(Duration::Millis(1), [this, rank, version, status] {
    pending_.push_back(scheduler::PrepareEnded{rank, version, status});
  });
}

void ExpertGroup::Receive(int32_t r, const scheduler::PrepareExperts& message) {
  Rank& rank = ranks_[static_cast<size_t>(r)];
  if (rank.slots == nullptr) return;
  const absl::Status accepted = rank.slots->Prepare(message);
  if (!accepted.ok() || message.copies.empty()) return Tell(r, message.target.version, accepted);
  rank.work = message;
  rank.work_id = next_work_++;
  Copy(r, rank.work_id);
}

// One expert after the other.
void ExpertGroup::Copy(int32_t r, uint64_t work_id) {
  const auto micros = static_cast<int64_t>(1 + rng_.Below(kCopyMicros));
  queue_.After(Duration::Micros(micros), [this, r, work_id] {
    Rank& rank = ranks_[static_cast<size_t>(r)];
    if (rank.slots == nullptr || rank.work_id != work_id) return;
    const uint64_t version = rank.work.target.version;
    if (rng_.Chance(options_.failed_copy)) {
      rank.slots->Abort(version);
      rank.work_id = 0;
      return Tell(r, version, absl::UnavailableError("copy failed"));
    }
    const scheduler::ExpertCopy copy = rank.work.copies.back();
    rank.work.copies.pop_back();
    if (!rank.slots->CopyDone(version, copy.layer, copy.slot)) return;
    if (rank.slots->prepared(version)) return Tell(r, version, absl::OkStatus());
    if (!rank.work.copies.empty()) Copy(r, work_id);
  });
}

// --- the leader -----------------------------------------------------------------------------

void ExpertGroup::StepPlanner(std::vector<RebalanceEvent> events, SwitchNotice* notice) {
  events.insert(events.begin(), pending_.begin(), pending_.end());
  pending_.clear();
  scheduler::RebalanceSink sink;
  planner_->Step(queue_.now(), events, sink);
  planner_->CheckInvariants();
  totals_.switches += sink.report.switches;
  totals_.restored += sink.report.restored;
  bool stop = false;
  for (const scheduler::RebalanceAction& action : sink.actions) {
    std::visit(
        [&](const auto& a) {
          using Action = std::decay_t<decltype(a)>;
          if constexpr (std::is_same_v<Action, scheduler::NameSwitch>) {
            *notice = a.notice;
          } else if constexpr (std::is_same_v<Action, scheduler::StopGroup>) {
            stop = true;
          } else if constexpr (!std::is_same_v<Action, scheduler::RankRestored>) {
            Carry(a);
          }
        },
        action);
  }
  if ((sink.report.uncovered > 0) != stop) problem_("an uncovered expert and no stop, or without");
  if (stop) Stop();
}

void ExpertGroup::Stop() {
  ++totals_.stopped;
  planner_.reset();
  for (Rank& rank : ranks_) rank = {};
}

// --- ranks that come and go -----------------------------------------------------------------

void ExpertGroup::Lose(int32_t rank) { ranks_[static_cast<size_t>(rank)] = {}; }

void ExpertGroup::Reform() { FormWith(-1); }

void ExpertGroup::Join(int32_t rank) { FormWith(rank); }

// All present ranks say where they stand, decide alike and go on; `joining` comes in empty.
void ExpertGroup::FormWith(int32_t joining) {
  std::vector<scheduler::SwitchState> states;
  for (const Rank& rank : ranks_) {
    if (rank.slots != nullptr) states.push_back(rank.slots->state());
  }
  const std::vector<bool> stayed = Present();
  int32_t leader = 0;
  const auto serves = [&](int32_t r) {
    const Rank& rank = ranks_[static_cast<size_t>(r)];
    return rank.slots != nullptr && rank.slots->active().live[static_cast<size_t>(r)];
  };
  while (leader < options_.ranks && !serves(leader)) ++leader;
  if (leader == options_.ranks) return Stop();  // nobody holds anything any more
  const auto decision = scheduler::ResolveSwitch(states, rng_.Chance(0.5));
  if (!decision.ok()) return problem_(decision.status().ToString());
  for (Rank& rank : ranks_) {
    if (rank.slots == nullptr) continue;
    const absl::Status formed = rank.slots->Reform(decision->version, leader, stayed);
    if (!formed.ok()) problem_(formed.ToString());
    rank.work_id = 0;
  }
  const ActiveExperts active = ranks_[static_cast<size_t>(leader)].slots->active();
  if (joining >= 0) {
    ranks_[static_cast<size_t>(joining)].slots =
        std::make_unique<scheduler::ExpertSlots>(joining, leader, active, false);
  }
  SwitchNotice none;
  if (leader == leader_) {
    pending_.push_back(scheduler::GroupFormed{Present(), stayed, active});
    return StepPlanner({}, &none);
  }
  ++totals_.takeovers;
  if (scheduler::CountUncovered(*active.placement, active.live) > 0) return Stop();
  leader_ = leader;
  ++term_;
  pending_.clear();
  planner_ = std::make_unique<scheduler::RebalancePlanner>(rebalance_, leader, active, Present(),
                                                           decision->next_version, queue_.now());
}

// --- steps ----------------------------------------------------------------------------------

int64_t ExpertGroup::Step(const std::vector<ExpertRow>& rows) {
  ++step_;
  ++totals_.steps;
  if (step_ % kDriftEvery == 0) {
    for (std::vector<int32_t>& order : popularity_) {
      std::swap(order[rng_.Below(order.size() / 8)], order[rng_.Below(order.size())]);
    }
  }
  if (step_ % kMeasureEvery == 0) {
    pending_.push_back(
        scheduler::LoadsMeasured{std::make_shared<std::vector<double>>(load_.Loads())});
  }
  SwitchNotice notice;
  StepPlanner({scheduler::StepStarting{step_}}, &notice);
  if (!formed()) return 0;
  for (Rank& rank : ranks_) {
    if (rank.slots == nullptr) continue;
    const absl::Status begun = rank.slots->BeginStep(step_, notice);
    if (!begun.ok()) problem_(begun.ToString());
  }
  CheckStep();
  return Route(rows);
}

// All ranks use the same placement, no token may go to a slot without its weights, and every expert
// has a live replica.
void ExpertGroup::CheckStep() {
  const ActiveExperts& used = ranks_[static_cast<size_t>(leader_)].slots->active();
  bool masked = false;
  for (size_t r = 0; r < ranks_.size(); ++r) {
    masked = masked || !used.live[r];
    if (ranks_[r].slots == nullptr) {
      if (used.live[r]) problem_(absl::StrCat("tokens go to rank ", r, ", which is gone"));
      continue;
    }
    ranks_[r].slots->CheckInvariants();
    const ActiveExperts& own = ranks_[r].slots->active();
    const bool same = own.placement == used.placement || *own.placement == *used.placement;
    if (own.version != used.version || !same || own.live != used.live) {
      problem_(
          absl::StrCat("rank ", r, " uses version ", own.version, ", the leader ", used.version));
    }
    const auto first = static_cast<int32_t>(r) * options_.slots_per_rank;
    for (int32_t l = 0; used.live[r] && l < options_.layers; ++l) {
      for (int32_t s = first; s < first + options_.slots_per_rank; ++s) {
        if (ranks_[r].slots->Held(l, s) == used.placement->Slots(l)[static_cast<size_t>(s)]) {
          continue;
        }
        problem_(absl::StrCat("rank ", r, " lacks the expert of slot ", s, " of layer ", l));
      }
    }
  }
  totals_.masked_steps += masked ? 1 : 0;
  if (tables_.empty() || used.placement != tables_of_.placement || used.live != tables_of_.live) {
    tables_of_ = used;
    MakeTables();
  }
}

void ExpertGroup::MakeTables() {
  tables_.clear();
  for (int32_t l = 0; l < options_.layers; ++l) {
    auto table = scheduler::MakeReplicaTable(*tables_of_.placement, l, tables_of_.live);
    if (!table.ok()) return problem_(table.status().ToString());
    tables_.push_back(*std::move(table));
  }
}

// Half of the choices fall on all experts alike, a quarter on the hotter half of them, an eighth on
// the hottest quarter, and so on: a power law without floating point.
int32_t ExpertGroup::Choose(uint64_t hash, int32_t layer) const {
  const std::vector<int32_t>& order = popularity_[static_cast<size_t>(layer)];
  uint64_t among = order.size();
  while (among > 1 && (hash & 1) != 0) {
    among /= 2;
    hash >>= 1;
  }
  return order[(hash >> 8) % among];
}

int64_t ExpertGroup::Route(const std::vector<ExpertRow>& rows) {
  int64_t critical = 0;
  std::vector<int32_t> chosen(static_cast<size_t>(options_.experts));
  std::vector<int32_t> tokens(ranks_.size());
  for (int32_t l = 0; l < options_.layers && !tables_.empty(); ++l) {
    const scheduler::ReplicaTable& table = tables_[static_cast<size_t>(l)];
    std::fill(chosen.begin(), chosen.end(), 0);
    std::fill(tokens.begin(), tokens.end(), 0);
    for (const ExpertRow& row : rows) {
      const uint32_t replica = scheduler::RowHash(row.request, row.position);
      // What a token chooses is its own affair: neighbours, placement and ranks do not enter.
      Rng token(row.request.value() * 0x9E3779B97F4A7C15ull ^
                (static_cast<uint64_t>(row.position) << 8 | static_cast<uint64_t>(l)));
      for (int32_t k = 0; k < options_.top_k; ++k) {
        const auto expert = static_cast<size_t>(Choose(token.Next(), l));
        ++chosen[expert];
        const auto count = static_cast<uint32_t>(table.counts[expert]);
        const int32_t slot =
            table.replicas[expert * static_cast<size_t>(table.max_replicas) + replica % count];
        ++tokens[static_cast<size_t>(slot / options_.slots_per_rank)];
      }
    }
    load_.Add(l, chosen);
    const int32_t most = *std::max_element(tokens.begin(), tokens.end());
    critical += most;
    const double mean =
        static_cast<double>(rows.size()) * options_.top_k / static_cast<double>(ranks_.size());
    const bool first = tables_of_.version == 1;
    (first ? totals_.first_mean : totals_.later_mean) += mean;
    (first ? totals_.first_most : totals_.later_most) += most;
  }
  load_.Advance();
  return critical;
}

}  // namespace baton::sim
