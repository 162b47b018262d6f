#ifndef BATON_TESTS_SCHEDULER_EPLB_ORACLE_H_
#define BATON_TESTS_SCHEDULER_EPLB_ORACLE_H_

// The published load balancer (EPLB), one layer at a time, written down step by step as its public
// description gives it: no bounds, no constraints, nothing improved. An oracle for tests.

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

namespace baton::scheduler::oracle {

using Loads = std::vector<double>;
using Ids = std::vector<int32_t>;

struct Packing {
  Ids pack;  // of each item
  Ids rank;  // of each item inside its pack
};

inline Packing BalancedPacking(const Loads& loads, int32_t packs) {
  const int32_t items = static_cast<int32_t>(loads.size());
  const int32_t room = items / packs;
  Packing out{Ids(items), Ids(items)};
  if (room == 1) {
    std::iota(out.pack.begin(), out.pack.end(), 0);
    return out;
  }
  Ids order(items);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return loads[a] > loads[b]; });
  Loads pack_load(packs);
  Ids pack_items(packs);
  for (int32_t item : order) {
    int32_t lightest = -1;
    for (int32_t p = 0; p < packs; ++p) {
      if (pack_items[p] == room) continue;
      if (lightest < 0 || pack_load[p] < pack_load[lightest]) lightest = p;
    }
    out.pack[item] = lightest;
    out.rank[item] = pack_items[lightest]++;
    pack_load[lightest] += loads[item];
  }
  return out;
}

struct Replicas {
  Ids expert;  // of each replica
  Ids count;   // of each expert
};

inline Replicas Replicate(const Loads& loads, int32_t replicas) {
  Replicas out{Ids(loads.size()), Ids(loads.size(), 1)};
  std::iota(out.expert.begin(), out.expert.end(), 0);
  while (static_cast<int32_t>(out.expert.size()) < replicas) {
    int32_t heaviest = 0;
    for (int32_t e = 1; e < static_cast<int32_t>(loads.size()); ++e) {
      if (loads[e] / out.count[e] > loads[heaviest] / out.count[heaviest]) heaviest = e;
    }
    out.expert.push_back(heaviest);
    ++out.count[heaviest];
  }
  return out;
}

// Expert of each physical slot.
inline Ids Hierarchical(const Loads& loads, int32_t replicas, int32_t groups, int32_t nodes,
                        int32_t gpus) {
  const int32_t experts = static_cast<int32_t>(loads.size());
  const int32_t group_size = experts / groups;
  const int32_t groups_per_node = groups / nodes;
  const int32_t gpus_per_node = gpus / nodes;
  const int32_t slots_per_gpu = replicas / gpus;
  Loads group_loads(groups);
  for (int32_t e = 0; e < experts; ++e) group_loads[e / group_size] += loads[e];
  const Packing on_node = BalancedPacking(group_loads, nodes);
  Ids in_the_middle(experts);  // new place -> expert, node after node
  for (int32_t e = 0; e < experts; ++e) {
    const int32_t g = e / group_size;
    const int32_t place = (on_node.pack[g] * groups_per_node + on_node.rank[g]) * group_size;
    in_the_middle[place + e % group_size] = e;
  }
  Ids slots(replicas);
  const int32_t per_node = experts / nodes;
  for (int32_t n = 0; n < nodes; ++n) {
    Loads node_loads;
    for (int32_t i = 0; i < per_node; ++i) {
      node_loads.push_back(loads[in_the_middle[n * per_node + i]]);
    }
    const Replicas node = Replicate(node_loads, replicas / nodes);
    Loads replica_loads;
    for (int32_t e : node.expert) replica_loads.push_back(node_loads[e] / node.count[e]);
    const Packing on_gpu = BalancedPacking(replica_loads, gpus_per_node);
    for (size_t i = 0; i < node.expert.size(); ++i) {
      const int32_t gpu = n * gpus_per_node + on_gpu.pack[i];
      slots[gpu * slots_per_gpu + on_gpu.rank[i]] = in_the_middle[n * per_node + node.expert[i]];
    }
  }
  return slots;
}

inline Ids Rebalance(const Loads& loads, int32_t replicas, int32_t groups, int32_t nodes,
                     int32_t gpus) {
  if (groups % nodes == 0) return Hierarchical(loads, replicas, groups, nodes, gpus);
  return Hierarchical(loads, replicas, 1, 1, gpus);
}

// Load of the most loaded GPU, an expert's load shared evenly by its replicas.
template <typename Slots>
double MaxLoad(const Loads& loads, const Slots& slots, int32_t gpus) {
  Ids count(loads.size());
  for (int32_t e : slots) ++count[e];
  Loads gpu_loads(gpus);
  const size_t per_gpu = slots.size() / gpus;
  for (size_t s = 0; s < slots.size(); ++s) {
    gpu_loads[s / per_gpu] += loads[slots[s]] / count[slots[s]];
  }
  return *std::max_element(gpu_loads.begin(), gpu_loads.end());
}

}  // namespace baton::scheduler::oracle

#endif  // BATON_TESTS_SCHEDULER_EPLB_ORACLE_H_
