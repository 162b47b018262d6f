#ifndef BATON_SERVER_FRONTEND_H_
#define BATON_SERVER_FRONTEND_H_

// Between the front ends (gRPC now, HTTP later) and the router's loop: numbers requests, keeps the
// open client streams, hands the loop's deliveries to them and records what a client sees in the
// metrics.
//
// Threads: Submit, Cancel and Reject from any thread; Deliver and Flush from the loop's thread
// only.

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/status/status.h"
#include "base/clock.h"
#include "base/ids.h"
#include "base/metrics.h"
#include "scheduler/router.h"
#include "server/frontend_loop.h"
#include "server/model_description.h"
#include "server/request_parser.h"

namespace baton::server {

// One client's open request. Called on the loop's thread; must not block.
class ClientStream {
 public:
  virtual ~ClientStream() = default;
  virtual void OnTokens(const scheduler::EmitTokens& tokens) = 0;
  // Exactly once, and last. Returns how the request ended for the client, for the metrics: one that
  // was cancelled because a stop string was found has stopped.
  virtual Outcome OnResult(const scheduler::RequestResult& result) = 0;
};

struct FrontendOptions {
  RequestLimits limits;
  int32_t max_open_requests = 4096;                    // queued and running together
  Duration default_duration = Duration::Seconds(600);  // of requests whose client set no deadline
  Duration max_duration = Duration::Seconds(24 * 3600);
  Duration retry_after = Duration::Millis(500);  // hint that goes with refusals made here
};

class Frontend {
 public:
  static constexpr Duration kNoDeadline = Duration::Nanos(INT64_MAX);

  // `id_space` is drawn at random when the process starts; it becomes the upper half of every
  // request id. The references must outlive the object; `metrics` is copied.
  Frontend(const FrontendOptions& options, uint32_t id_space, Clock& clock, FrontendInbox& inbox,
           const RouterMetrics& metrics);

  const FrontendOptions& options() const { return options_; }
  Clock& clock() { return clock_; }

  // Queues a request. On OK `stream` is kept until its OnResult. RESOURCE_EXHAUSTED when the inbox
  // is full or too many requests are open: try again after options().retry_after. `remaining`:
  // until the client's deadline, kNoDeadline without one; <= 0 is DEADLINE_EXCEEDED.
  absl::StatusOr<RequestId> Submit(std::vector<TokenId> prompt,
                                   const scheduler::SamplingParams& sampling,
                                   const std::string& cache_salt, Tick arrived_at,
                                   Duration remaining, std::shared_ptr<ClientStream> stream);

  // The client left. Its stream still gets a result. Unknown ids are ignored.
  void Cancel(RequestId id);

  // Counts a request that was refused before Submit.
  void Reject(const absl::Status& status);

  void Deliver(const scheduler::EmitTokens& tokens);
  void Deliver(const scheduler::RequestResult& result);
  // Pushes the cancels that found the inbox full. Called after every step.
  void Flush();

  // A number nobody can guess from the last one: seeds for requests without one.
  uint64_t FreshSeed();

 private:
  struct Open {
    std::shared_ptr<ClientStream> stream;
    Tick last_token;
    bool has_token = false;
  };

  void RecordResult(const scheduler::RequestResult& result, Outcome outcome);

  const FrontendOptions options_;
  Clock& clock_;
  FrontendInbox& inbox_;
  const RouterMetrics metrics_;

  std::mutex mutex_;
  uint64_t next_id_;                       // guarded by mutex_
  std::map<RequestId, Open> open_;         // guarded by mutex_; at most max_open_requests
  std::vector<RequestId> unsent_cancels_;  // guarded by mutex_; of requests in open_
};

// The label under which a request that ended with `status` is counted.
Outcome OutcomeOf(const absl::Status& status, scheduler::FinishReason reason);

}  // namespace baton::server

#endif  // BATON_SERVER_FRONTEND_H_
