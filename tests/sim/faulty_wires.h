#ifndef BATON_TESTS_SIM_FAULTY_WIRES_H_
#define BATON_TESTS_SIM_FAULTY_WIRES_H_

// The transports of `baton serve` for a simulated Cluster: endpoints of one InprocFabric, those of
// prefill workers behind the seeded FaultyTransport. Ticks a host's loop when its endpoint has
// something to say or a message held back is due. One thread; must outlive the cluster.

#include <cstdint>
#include <functional>
#include <memory>

#include "tests/sim/cluster.h"
#include "transport/faulty/faulty_transport.h"
#include "transport/inproc/inproc_transport.h"

namespace baton::sim {

class FaultyWires {
 public:
  // The seed and the clock of `faults` are set for each endpoint.
  FaultyWires(uint64_t seed, const transport::FaultyOptions& faults,
              const transport::InprocOptions& inproc)
      : seed_(seed), faults_(faults), inproc_(inproc) {}

  // ClusterOptions::make_transport.
  std::unique_ptr<transport::KvTransport> MakeTransport(const HostContext& host);

  // Of the endpoints that are gone.
  const transport::FaultCounts& counts() const { return counts_; }

 private:
  class Endpoint;

  const uint64_t seed_;
  const transport::FaultyOptions faults_;
  const transport::InprocOptions inproc_;
  transport::InprocFabric fabric_;
  uint64_t endpoints_ = 0;
  transport::FaultCounts counts_;
};

// Adds `more` to `sum`, field by field.
void AddCounts(const transport::FaultCounts& more, transport::FaultCounts* sum);

}  // namespace baton::sim

#endif  // BATON_TESTS_SIM_FAULTY_WIRES_H_
