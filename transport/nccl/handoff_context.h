#ifndef BATON_TRANSPORT_NCCL_HANDOFF_CONTEXT_H_
#define BATON_TRANSPORT_NCCL_HANDOFF_CONTEXT_H_

// What both directions of an NCCL endpoint work with; its owner is the engine (nccl_engine.h).

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "base/clock.h"
#include "transport/group/frame_socket.h"
#include "transport/nccl/handoff_channel.h"
#include "transport/nccl/handoff_message.h"
#include "transport/nccl/nccl_transport.h"
#include "transport/nccl/payload_memory.h"

namespace baton::transport {

struct NcclArrival {
  KvEvent event;
  std::shared_ptr<PayloadRing::Block> block;  // that its payload lies in
  std::vector<std::byte> bytes;               // of a notify
};

struct HandoffCounters {
  std::atomic<uint64_t> malformed_messages{0};
  std::atomic<uint64_t> dropped_notifies{0};
  std::atomic<uint64_t> failed_receives{0};
  std::atomic<uint64_t> peers_lost{0};
  std::atomic<uint64_t> communicators{0};
  std::atomic<uint64_t> evictions{0};
  std::atomic<uint64_t> batches_sent{0};
  std::atomic<uint64_t> batches_put{0};
};

// When the endpoint's thread has to look again, though nothing wakes it.
class NextLook {
 public:
  explicit NextLook(Tick now) : now_(now) {}
  void At(Tick when) { when_ = std::min(when_, when); }
  void In(Duration wait) { At(now_ + wait); }
  Tick when() const { return when_; }
  Tick now() const { return now_; }

 private:
  const Tick now_;
  Tick when_ = Tick::Infinite();
};

// How soon, while NCCL is at something of whose end nobody tells.
inline constexpr Duration kTransitionWait = Duration::Millis(1);
// While a deadline is to be kept.
inline constexpr Duration kDeadlineWait = Duration::Millis(50);
// Batches of one pair of endpoints that are offered or under way.
inline constexpr size_t kMaxOpenBatches = 4;

struct HandoffContext {
  const NcclTransportOptions& options;
  ChannelOptions channel;
  HandoffPlace place;
  HandoffCounters& counters;
  std::function<void(NcclArrival)> emit;

  // Channels that are aborted and not yet drained. Their memory is nobody's any more.
  std::vector<std::unique_ptr<HandoffChannel>> ending;

  void End(std::unique_ptr<HandoffChannel> channel) {
    if (channel == nullptr) return;
    channel->Abort();
    ending.push_back(std::move(channel));
  }
};

inline void Tell(FrameSocket& socket, const HandoffMessage& message) {
  socket.Queue(FrameKind::kHandoff, EncodeHandoff(message));
}

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_NCCL_HANDOFF_CONTEXT_H_
