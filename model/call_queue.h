#ifndef BATON_MODEL_CALL_QUEUE_H_
#define BATON_MODEL_CALL_QUEUE_H_

// Calls that run one after another on a thread of their own, in the order in which they were
// posted: a group's collectives, beside the computation. One thread posts and waits.

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "base/thread.h"

namespace baton::model {

class CallQueue {
 public:
  using Call = std::function<absl::Status()>;
  using Ticket = uint64_t;

  explicit CallQueue(const std::string& thread_name);
  ~CallQueue();  // runs what was posted

  // After a call has failed the next ones still run: collectives of a broken group fail at once.
  Ticket Post(Call call);
  // Waits for this call and returns what it returned. Once for each ticket.
  absl::Status Wait(Ticket ticket);
  // Waits for all calls and forgets what they returned.
  void WaitForAll();

 private:
  void Run();

  std::mutex mutex_;
  std::condition_variable posted_;
  std::condition_variable done_;
  std::deque<Call> calls_;                  // the first one is running
  std::map<Ticket, absl::Status> results_;  // that nobody has waited for
  Ticket next_ticket_ = 0;                  // of the next call to be posted
  Ticket next_done_ = 0;                    // of the first call in calls_
  bool closing_ = false;
  Thread thread_;
};

}  // namespace baton::model

#endif  // BATON_MODEL_CALL_QUEUE_H_
