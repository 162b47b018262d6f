#ifndef BATON_SERVER_MAIN_GROUPS_H_
#define BATON_SERVER_MAIN_GROUPS_H_

// How the ranks of a worker find each other, as the configuration says. Part of main, like
// main_roles.

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/config.h"
#include "server/main_model.h"
#include "transport/collectives.h"

namespace baton::server {

// A group whose ranks are threads of this process: one handle for each rank, in their order. For
// a worker of one rank null, or a group of one where its rows are rounded on their way to experts.
absl::StatusOr<std::vector<std::unique_ptr<transport::Collectives>>> FormThreadGroup(
    const Config& config, RunnerRole role, std::shared_ptr<Clock> clock);

}  // namespace baton::server

#endif  // BATON_SERVER_MAIN_GROUPS_H_
