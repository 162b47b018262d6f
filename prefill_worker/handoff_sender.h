#ifndef BATON_PREFILL_WORKER_HANDOFF_SENDER_H_
#define BATON_PREFILL_WORKER_HANDOFF_SENDER_H_

// Ships finished pages to decode ranks while the pass that makes them still runs: after each layer
// it packs that layer's pages into the staging ring and posts them. Never waits: what does not fit
// the ring or the transport now stands in a backlog that later layers and ticks work off (the
// planner bounds how long). Owned and called by the prefill loop's thread.
//
// The sender owns its transport endpoint and the memory that messages are sent from. The endpoint
// may read a payload until it says otherwise or is gone, and nobody can make it say so; so the
// memory goes after the endpoint, and the destructor waits for nothing. What is in flight then is
// lost: whoever wants it to arrive keeps the sender until has_posts_in_flight() is false.

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/metrics.h"
#include "model/runner.h"
#include "prefill_worker/staging_ring.h"
#include "scheduler/prefill_planner.h"
#include "transport/kv_transport.h"

namespace baton::prefill_worker {

struct HandoffSenderOptions {
  uint64_t staging_bytes = uint64_t{16} << 20;
  uint64_t max_message_bytes = uint64_t{1} << 20;  // the transport's own limit also holds
  int32_t max_peers = 64;                          // decode ranks with an open transfer
  int32_t max_transport_events = 256;              // looked at in one poll
  // In a group every rank has all pages and ships one of `ranks` equal runs of those that a pass
  // finishes, another one in each layer.
  int32_t rank = 0;
  int32_t ranks = 1;
  HandoffSendMetrics metrics;  // outlive the sender
};

class HandoffSender final : public model::LayerObserver {
 public:
  // INVALID_ARGUMENT when one page of one layer does not fit a message or the ring; whatever
  // Register refuses. `clock`, for metrics, and `runner` must outlive the sender.
  static absl::StatusOr<std::unique_ptr<HandoffSender>> Create(
      const HandoffSenderOptions& options, Clock& clock, model::Runner& runner,
      std::unique_ptr<transport::KvTransport> transport);

  void Open(const scheduler::OpenHandoff& open);
  // Forgets the call: nothing more is read from its pages or posted, nothing reported.
  void Abort(RequestKey key);

  // Around a pass: what it finishes. OnLayerWritten comes from the runner in between.
  void BeginPass(std::vector<scheduler::HandoffSlice> slices);
  void OnLayerWritten(int32_t layer) override;
  void EndPass();

  // Polls the transport and works off the backlog. True when the transport had more to say.
  bool Progress();

  // Calls whose hand-off is over since the last time.
  std::vector<scheduler::HandoffFinished> TakeFinished();
  // Calls of which messages were posted since the last time, and whose hand-off goes on.
  std::vector<RequestKey> TakeProgressed();

  bool has_backlog() const { return !backlog_.empty(); }
  // When to call Progress even if the transport does not wake the loop.
  Tick NextWake(Tick now) const;
  bool has_posts_in_flight() const { return !posts_.empty(); }
  bool has_finished() const { return !finished_.empty(); }

  // Aborts when the state contradicts itself.
  void CheckInvariants() const;

 private:
  struct Peer {
    transport::TransferId transfer;
    int32_t calls = 0;
  };
  struct Call {
    scheduler::Landing landing;
    transport::TransferId transfer;
    uint32_t messages = 0;  // posted
    uint64_t bytes = 0;
    Tick begun;                  // the first of them
    int32_t backlog = 0;         // pieces in backlog_
    bool all_announced = false;  // the last layer of the last slice has been written
    bool progressed = false;     // something was posted since TakeProgressed
  };
  // One message to be.
  struct Piece {
    RequestKey key;
    uint32_t layer = 0;
    uint32_t first_page = 0;  // index into the landing's pages
    std::vector<PageId> pages;
    uint32_t token_count = 0;
  };

  HandoffSender(const HandoffSenderOptions& options, Clock& clock, model::Runner& runner,
                std::unique_ptr<transport::KvTransport> transport,
                std::shared_ptr<std::byte> memory, int32_t pages_per_message);

  absl::StatusOr<transport::TransferId> TransferTo(const std::string& address);
  void QueuePages(const scheduler::HandoffSlice& slice, int32_t layer, Call& call);
  void WorkOffBacklog();
  enum class PostResult { kPosted, kNoRoom, kFailed };
  PostResult PostFront();
  void HandleEvent(const transport::KvEvent& event);
  void OnPeerLost(transport::TransferId transfer, const absl::Status& status);
  void FinishIfComplete(RequestKey key);
  void Fail(RequestKey key, absl::Status status);
  void DropCall(RequestKey key);

  const HandoffSenderOptions options_;
  Clock& clock_;
  model::Runner& runner_;
  const int32_t pages_per_message_;
  StagingRing ring_;
  // Below the ring: it reads the ring's memory until it is gone.
  const std::unique_ptr<transport::KvTransport> transport_;
  std::map<std::string, Peer> peers_;  // by transport address
  std::map<RequestKey, Call> calls_;
  std::deque<Piece> backlog_;
  std::vector<scheduler::HandoffSlice> pass_;
  std::map<uint64_t, transport::TransferId> posts_;  // not yet sent, by post id
  uint64_t next_post_ = 1;
  std::vector<scheduler::HandoffFinished> finished_;
  std::vector<transport::KvEvent> events_;  // reused between polls
};

}  // namespace baton::prefill_worker

#endif  // BATON_PREFILL_WORKER_HANDOFF_SENDER_H_
