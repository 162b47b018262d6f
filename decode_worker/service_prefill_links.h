#ifndef BATON_DECODE_WORKER_SERVICE_PREFILL_LINKS_H_
#define BATON_DECODE_WORKER_SERVICE_PREFILL_LINKS_H_

// A decode rank's streams to prefill workers: one for each address, opened by the first call to it
// and again by the first call after it broke. Every call ends in exactly one event: PrefillReplied,
// or PrefillCallFailed when its stream ends first.
//
// Threads: Call and Cancel from the loop's thread, events come from gRPC's.

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "base/clock.h"
#include "base/log.h"
#include "scheduler/decode_planner.h"
#include "wire/channel_factory.h"
#include "wire/deferred_inbox.h"
#include "wire/own_identity.h"

namespace baton::decode_worker {

class PrefillStream;

class PrefillLinks {
 public:
  // The references must outlive the object. `max_workers`: addresses that streams are kept for.
  PrefillLinks(const wire::OwnIdentity& identity, int32_t max_workers,
               wire::ChannelFactory channels, Clock& clock,
               wire::DeferredInbox<scheduler::DecodeEvent>& inbox, const Log& log);
  // All streams must have ended: CloseAll, then wait for open_streams() == 0.
  ~PrefillLinks();

  void Call(const scheduler::CallPrefill& call);
  void Cancel(const scheduler::CancelPrefill& cancel);

  // Ends the streams; their open calls fail. No call may follow.
  void CloseAll();
  // Returns once every stream has ended (soon after CloseAll).
  void WaitUntilClosed();

 private:
  friend class PrefillStream;

  std::shared_ptr<PrefillStream> Open(const std::string& address);
  void Ended(const std::string& address, const PrefillStream* stream);

  const wire::OwnIdentity& identity_;
  const size_t max_workers_;
  const wire::ChannelFactory channels_;
  Clock& clock_;
  wire::DeferredInbox<scheduler::DecodeEvent>& inbox_;
  const Log log_;

  std::atomic<bool> closing_{false};  // ends are no news any more

  std::mutex mutex_;
  std::condition_variable all_ended_;
  // guarded by mutex_: the live stream of each address, its channel (kept when the stream breaks,
  // as it remembers to back off), and how many streams gRPC still works on
  std::map<std::string, std::shared_ptr<PrefillStream>> streams_;
  std::map<std::string, std::shared_ptr<grpc::Channel>> channels_made_;
  int32_t open_streams_ = 0;
};

}  // namespace baton::decode_worker

#endif  // BATON_DECODE_WORKER_SERVICE_PREFILL_LINKS_H_
