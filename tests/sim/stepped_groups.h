#ifndef BATON_TESTS_SIM_STEPPED_GROUPS_H_
#define BATON_TESTS_SIM_STEPPED_GROUPS_H_

// Decode ranks of a simulated Cluster in groups whose passes run together: a step begins with the
// first rank that has something to run, takes in who comes within the time that headers need, and
// lasts as long as its slowest rank and its most loaded experts. A rank that is lost stops its
// group until the others have noticed; then they go on without it, or the group fails as a whole
// and forms again. One thread; must outlive the cluster.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "model/runner.h"
#include "scheduler/types.h"
#include "tests/sim/cluster.h"
#include "tests/sim/event_queue.h"
#include "tests/sim/expert_group.h"

namespace baton::sim {

struct GroupOptions {
  int ranks = 0;  // of each group; divides the cluster's. 0: ranks step alone
  ExpertGroupOptions experts;
};

class SteppedGroups {
 public:
  SteppedGroups(const GroupOptions& options, int decode_ranks, uint64_t seed, EventQueue& queue,
                std::function<void(const std::string&)> problem);
  ~SteppedGroups();

  // ClusterOptions::make_runner; `options` without cost of time.
  std::unique_ptr<model::Runner> MakeRunner(int rank, const StubRunnerOptions& options);

  // To be called once the cluster stands.
  void Attach(Cluster& cluster);
  // A rank does nothing for a while: its group waits for it, or, when that takes too long, goes on
  // without it.
  void Stall(int rank, Duration for_how_long);
  // No more requests: once all groups are whole again, nothing happens any more.
  void Finish() { finished_ = true; }

  ExpertTotals totals() const;

 private:
  class Member;
  struct Group;

  Group& GroupOf(int rank) {
    return *groups_[static_cast<size_t>(rank) / static_cast<size_t>(options_.ranks)];
  }
  void OnUp(int rank);
  void OnDown(int rank);
  absl::Status OnPass(int rank, const scheduler::BatchPlan& plan);
  void Close(Group& group);
  void Reform(Group& group);
  void FailWhole(Group& group);
  void Hold(Group& group, Duration for_how_long);
  void HoldWhileUnformed(Group& group);
  void Beat(int beats);

  const GroupOptions options_;
  EventQueue& queue_;
  const std::function<void(const std::string&)> problem_;
  Cluster* cluster_ = nullptr;
  Rng rng_;
  std::vector<std::unique_ptr<Group>> groups_;
  bool finished_ = false;
};

}  // namespace baton::sim

#endif  // BATON_TESTS_SIM_STEPPED_GROUPS_H_
