#ifndef BATON_TESTS_SIM_EXPERT_GROUP_H_
#define BATON_TESTS_SIM_EXPERT_GROUP_H_

// The experts of one simulated decode group: skewed and drifting choices of its tokens, and the
// shipped code that places, counts, routes and rebalances them (scheduler/expert_*,
// rebalance_planner) on every rank, with messages and copies that take time, get lost and fail.
// One thread.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/random.h"
#include "scheduler/expert_load.h"
#include "scheduler/expert_routing.h"
#include "scheduler/rebalance_planner.h"
#include "tests/sim/event_queue.h"

namespace baton::sim {

struct ExpertGroupOptions {
  int32_t ranks = 32;
  int32_t ranks_per_node = 8;
  int32_t layers = 4;
  int32_t experts = 64;
  int32_t slots_per_rank = 4;
  int32_t top_k = 2;
  double lost_message = 0;
  double failed_copy = 0;
  uint64_t seed = 1;
};

// One token of a step.
struct ExpertRow {
  RequestId request;
  int32_t position = 0;
};

// Sums over the life of a group, or of several.
struct ExpertTotals {
  int64_t steps = 0;
  int64_t switches = 0;
  int64_t installed = 0;
  int64_t rolled_back = 0;
  int64_t masked_steps = 0;  // with a rank that no token goes to
  int64_t takeovers = 0;     // of the lead
  int64_t restored = 0;
  int64_t stopped = 0;  // experts were uncovered: the group failed as a whole
  // Tokens of the average and of the most loaded rank over steps and layers: while the placement is
  // the one that knows no loads, and later.
  double first_mean = 0, first_most = 0;
  double later_mean = 0, later_most = 0;
  void Add(const ExpertTotals& more);
};

class ExpertGroup {
 public:
  // `problem` hears of whatever must not happen.
  ExpertGroup(const ExpertGroupOptions& options, EventQueue& queue,
              std::function<void(const std::string&)> problem);

  // All ranks are there and have loaded their slots: the group begins anew.
  void Form();
  bool formed() const { return planner_ != nullptr; }

  // A rank is gone; no step until Reform.
  void Lose(int32_t rank);
  // The others go on without those who are gone; or, when experts are uncovered, the group is no
  // longer formed.
  void Reform();
  // A rank comes in with empty slots.
  void Join(int32_t rank);

  // The tokens of all ranks. Returns how many the most loaded rank has in each layer, summed up.
  int64_t Step(const std::vector<ExpertRow>& rows);

  // A switch waits for steps, or a rank to be restored.
  bool WantsSteps() const;
  bool whole() const;  // every rank serves
  const ExpertTotals& totals() const { return totals_; }

 private:
  struct Rank {
    std::unique_ptr<scheduler::ExpertSlots> slots;  // null: gone
    scheduler::PrepareExperts work;                 // copies under way; version 0: none
    uint64_t work_id = 0;
  };

  void Post(Duration longest, std::function<void()> deliver);
  void StepPlanner(std::vector<scheduler::RebalanceEvent> events, scheduler::SwitchNotice* notice);
  void Carry(const scheduler::ComputePlacement& compute);
  void Carry(const scheduler::SendPrepare& send);
  void Carry(const scheduler::SendAbort& send);
  void Carry(const scheduler::RebalanceEnded& ended);
  void Receive(int32_t rank, const scheduler::PrepareExperts& message);
  void Copy(int32_t rank, uint64_t work_id);
  void Tell(int32_t rank, uint64_t version, const absl::Status& status);
  void CheckStep();
  void MakeTables();
  int64_t Route(const std::vector<ExpertRow>& rows);
  int32_t Choose(uint64_t hash, int32_t layer) const;
  std::vector<bool> Present() const;
  void FormWith(int32_t joining);
  void Stop();

  const ExpertGroupOptions options_;
  EventQueue& queue_;
  const std::function<void(const std::string&)> problem_;
  scheduler::RebalanceOptions rebalance_;
  Rng rng_;
  uint64_t step_ = 0;
  uint64_t life_ = 0;  // of the group, from Form on: messages of an earlier one are lost
  uint64_t term_ = 0;  // of leaders: what an earlier one has computed is lost with it
  uint64_t next_work_ = 1;
  int32_t leader_ = 0;
  std::vector<Rank> ranks_;
  std::vector<scheduler::RebalanceEvent> pending_;
  std::unique_ptr<scheduler::RebalancePlanner> planner_;
  scheduler::ExpertLoad load_;
  std::vector<std::vector<int32_t>> popularity_;  // [layer]: experts, the hottest first
  std::vector<scheduler::ReplicaTable> tables_;   // [layer], of tables_of_
  scheduler::ActiveExperts tables_of_;
  ExpertTotals totals_;
};

}  // namespace baton::sim

#endif  // BATON_TESTS_SIM_EXPERT_GROUP_H_
