#ifndef BATON_SERVER_MAIN_GROUPS_H_
#define BATON_SERVER_MAIN_GROUPS_H_

// How the ranks of a worker find each other, as the configuration says, and how they part. Part of
// main, like main_roles.

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/config.h"
#include "base/log.h"
#include "decode_worker/service.h"
#include "model/runner.h"
#include "server/main_model.h"
#include "server/model_description.h"
#include "server/termination.h"
#include "transport/collectives.h"
#include "transport/gpu_place.h"
#include "transport/group/group.h"

namespace baton::server {

// For a worker of one rank: null, or a group of one where its rows are rounded on their way to
// experts.
std::unique_ptr<transport::Collectives> GroupOfOne(const model::RunnerOptions& options);

// The GPU of a rank that is a process: that of its number, of those that the process sees, modulo
// their number, so that hosts with equally many need no further word. Null where the backend is
// none of GPUs and for a worker of one rank.
absl::StatusOr<std::unique_ptr<transport::GpuPlace>> GpuPlaceOfProcess(
    const Config& config, RunnerRole role, int32_t rank, model::RunnerOptions& options);

// How ranks that are threads of this process meet, in their order, each at its place if it has one.
absl::StatusOr<std::vector<std::unique_ptr<transport::Rendezvous>>> MeetAsThreads(
    int32_t ranks, std::span<const std::unique_ptr<transport::GpuPlace>> places,
    std::shared_ptr<Clock> clock);

// A group whose ranks are threads of this process: one handle for each rank, in their order.
absl::StatusOr<std::vector<std::unique_ptr<transport::Collectives>>> FormThreadGroup(
    const Config& config, RunnerRole role,
    std::span<const std::unique_ptr<transport::GpuPlace>> places, std::shared_ptr<Clock> clock);

// This process's rank: <role>.rank or, where that is -1, the number that ends the host's name, as
// StatefulSets name their pods ("baton-decode-3"). 0 for a worker of one rank. INVALID_ARGUMENT,
// with the fix, where there is none or the addresses do not fit.
absl::StatusOr<int32_t> RankOfProcess(const Config& config, RunnerRole role,
                                      const std::string& host_name);

// Joins the other processes of a prefill group, and says on the way whom it waits for. They must
// have the same revision, the model `model_hash`, and `options`. CANCELLED when a signal came;
// DEADLINE_EXCEEDED after group.join_timeout_ms.
absl::StatusOr<std::unique_ptr<transport::Collectives>> JoinPrefillGroup(
    const Config& config, int32_t rank, const std::string& model_hash,
    const model::RunnerOptions& options, transport::GpuPlace* place, std::shared_ptr<Clock> clock,
    TerminationSignals& signals, const Log& log);

// Knows whether the passes of a rank have paused. A rank that has drained still takes part in the
// others' passes: it leaves in a pause, which is when they have drained too, or have nothing to do.
// All methods but Watch: any thread.
class PassWatch {
 public:
  explicit PassWatch(Clock& clock) : clock_(clock) {}

  // `runner`, watched. It goes before this object.
  std::unique_ptr<model::Runner> Watch(std::unique_ptr<model::Runner> runner);

  // The pause begins anew: the others may have been told to end just now as well.
  void Restart() { last_end_nanos_.store(clock_.Now().nanos()); }
  bool paused() const;

 private:
  class Watched;
  Clock& clock_;
  std::atomic<bool> running_{false};
  std::atomic<int64_t> last_end_nanos_{0};
};

// What the ranks of a decode worker in this process need in order to find each other on their own
// threads: one for each rank, less metrics. Null for a worker of one rank.
absl::StatusOr<std::vector<std::unique_ptr<decode_worker::DecodeGroup>>> DecodeThreadGroup(
    const Config& config, const ModelDescription& model,
    std::span<const std::unique_ptr<transport::GpuPlace>> places, std::shared_ptr<Clock> clock);

// The same for a decode rank whose group's other ranks are processes, each with these `options`.
// INVALID_ARGUMENT, FAILED_PRECONDITION with the fix when this rank cannot be where it is to be
// met.
absl::StatusOr<std::unique_ptr<decode_worker::DecodeGroup>> DecodeProcessGroup(
    const Config& config, const ModelDescription& model, int32_t rank,
    const model::RunnerOptions& options, transport::GpuPlace* place, std::shared_ptr<Clock> clock,
    const Log& log);

// The section decode.rebalance, and what else a decode rank's group needs to know.
decode_worker::ExpertGroupOptions ExpertGroupOptionsFor(const Config& config,
                                                        const ModelDescription& model,
                                                        int32_t rank);

}  // namespace baton::server

#endif  // BATON_SERVER_MAIN_GROUPS_H_
