#ifndef BATON_SERVER_MAIN_EMBEDDED_H_
#define BATON_SERVER_MAIN_EMBEDDED_H_

// From the configuration to all roles in one process. Part of main, like main_roles.

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "base/config.h"
#include "server/embedded.h"
#include "server/main_roles.h"

namespace baton::server {

// Which GPU each rank computes on, where all roles are in one process.
struct GpuPlan {
  std::vector<int> prefill, decode;  // by rank; empty where the backend is none of GPUs
  bool apart = false;                // no two ranks have the same one
};

// Prefill's ranks have the first of the `gpus` that the process sees, decode's those behind. Two
// workers of one rank each share GPU 0 where there is no other. INVALID_ARGUMENT, with the numbers
// and the flags, for other ranks where there are too few GPUs: ranks of one GPU would wait for each
// other's NCCL calls, which nothing puts into one order.
absl::StatusOr<GpuPlan> PlanGpus(const Config& config, int gpus);

// Everything that Embedded needs, with the ranks of both workers. `log` is for what they tell while
// they are made, and for their transports.
absl::StatusOr<EmbeddedParts> MakeEmbeddedParts(const Config& config, const ModelFiles& files,
                                                const Log& log);

}  // namespace baton::server

#endif  // BATON_SERVER_MAIN_EMBEDDED_H_
