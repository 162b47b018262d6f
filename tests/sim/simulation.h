#ifndef BATON_TESTS_SIM_SIMULATION_H_
#define BATON_TESTS_SIM_SIMULATION_H_

// One seeded run of a cluster under load and faults: random requests arrive, some are cancelled or
// have little time, workers crash, stall, drain and lose connections; then everything heals and the
// run goes on until nothing happens any more. What should not have happened stands in `problems`.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "tests/sim/cluster.h"
#include "tests/sim/stepped_groups.h"

namespace baton::sim {

struct SimulationOptions {
  ClusterOptions cluster;
  GroupOptions groups;
  uint64_t seed = 1;
  int requests = 500;
  Duration mean_gap = Duration::Micros(1'500);  // between arrivals
  int32_t max_prompt = 200;
  int32_t max_tokens = 40;
  double shared_chance = 0.5;        // of a prompt: begins as an earlier one, or goes on from it
  double cancel_chance = 0;          // of a request, at a random moment of its life
  double short_deadline_chance = 0;  // 1 to 200 ms
  Duration deadline = Duration::Seconds(120);
  Duration mean_fault_gap;  // between worker faults; 0: none
};

struct SimulationResult {
  uint64_t trace = 0;  // equal for equal options, bit for bit
  std::map<absl::StatusCode, int> ended;
  int refused_at_door = 0;
  int64_t tokens = 0;
  Duration simulated;
  ClusterCounts counts;
  TransportCounts transport;
  ExpertTotals experts;               // of all groups
  std::vector<std::string> problems;  // at most 10
  std::string Summary() const;
};

SimulationResult RunSimulation(const SimulationOptions& options);

// Options with every kind of fault at once.
SimulationOptions Hostile(uint64_t seed, int requests);

}  // namespace baton::sim

#endif  // BATON_TESTS_SIM_SIMULATION_H_
