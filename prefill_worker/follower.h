#ifndef BATON_PREFILL_WORKER_FOLLOWER_H_
#define BATON_PREFILL_WORKER_FOLLOWER_H_

// A running follower: a GroupFollower on a thread of its own. It lives until the leader ends the
// group or the group breaks; then over() is true, and there is nothing left to do but to destroy
// it.

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "model/runner.h"
#include "prefill_worker/handoff_sender.h"
#include "transport/collectives.h"
#include "transport/kv_transport.h"

namespace baton::prefill_worker {

struct FollowerOptions {
  HandoffSenderOptions handoff;
  Duration timeout = transport::kDefaultCollectiveTimeout;  // of one collective call
  Duration poll_interval;                                   // as in PrefillWorkerOptions
};

class Follower {
 public:
  // The clock outlives the follower; `runner` uses `collectives`. Of `metrics` it records its
  // passes and its share of hand-offs. Fails as HandoffSender::Create.
  static absl::StatusOr<std::unique_ptr<Follower>> Start(
      const FollowerOptions& options, Clock& clock,
      std::unique_ptr<transport::Collectives> collectives, std::unique_ptr<model::Runner> runner,
      std::unique_ptr<transport::KvTransport> transport, const PrefillMetrics& metrics,
      const Log& log);

  // Ends the thread after the round that it is in; breaks the group unless that is over.
  virtual ~Follower() = default;

  virtual bool over() const = 0;  // any thread
  // OK, also once the leader has ended the group; else why the group is broken. Any thread.
  virtual absl::Status health() const = 0;
};

}  // namespace baton::prefill_worker

#endif  // BATON_PREFILL_WORKER_FOLLOWER_H_
