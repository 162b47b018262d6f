#include "server/main_groups.h"

#include <string>
#include <utility>

#include "base/status_macros.h"
#include "base/thread.h"
#include "transport/inproc/inproc_group.h"

namespace baton::server {

absl::StatusOr<std::vector<std::unique_ptr<transport::Collectives>>> FormThreadGroup(
    const Config& config, RunnerRole role, std::shared_ptr<Clock> clock) {
  using Joined = absl::StatusOr<std::unique_ptr<transport::Collectives>>;
  const int32_t ranks = RanksOf(config, role);
  std::vector<std::unique_ptr<transport::Collectives>> group(static_cast<size_t>(ranks));
  if (ranks == 1) {
    if (role == RunnerRole::kDecode && config.decode().expert_dispatch() == "fp8") {
      group[0] = transport::MakeSoloCollectives();
    }
    return group;
  }
  transport::InprocGroups groups(std::move(clock));
  std::vector<Joined> joined(group.size());
  {
    std::vector<Thread> threads;
    for (int32_t rank = 0; rank < ranks; ++rank) {
      threads.emplace_back("join-" + std::to_string(rank), [&, rank] {
        joined[static_cast<size_t>(rank)] = groups.NewRendezvous()->Join(
            {.group_id = RoleName(role), .world_size = ranks, .rank = rank});
      });
    }
  }
  for (size_t rank = 0; rank < group.size(); ++rank) {
    BATON_ASSIGN_OR_RETURN(group[rank], std::move(joined[rank]));
  }
  return group;
}

}  // namespace baton::server
