#ifndef BATON_TRANSPORT_NCCL_NCCL_ENGINE_H_
#define BATON_TRANSPORT_NCCL_NCCL_ENGINE_H_

// The thread of an NCCL endpoint, with all that it owns: the two directions, their connections and
// channels. The loop thread talks to it through Submit and TakeEvents only. It sleeps in poll on
// its sockets and one eventfd, which commands, freed staging and batches that the GPU has done
// write to.

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/thread.h"
#include "transport/nccl/handoff_inbound.h"
#include "transport/nccl/handoff_outbound.h"
#include "transport/ucx/ucx_address.h"

namespace baton::transport {

struct NcclCommand {
  enum class Kind : uint8_t { kOpen, kPost, kNotify, kFlush, kRelease };
  Kind kind = Kind::kOpen;
  TransferId transfer;
  std::string bytes;    // kOpen: the peer's address; kNotify: the message
  NcclAddress address;  // kOpen: the same, decoded
  HandoffOutbound::PostCommand post;
};

class NcclEngine {
 public:
  static absl::StatusOr<std::unique_ptr<NcclEngine>> Create(const NcclTransportOptions& options,
                                                            UcxVersion nccl,
                                                            std::shared_ptr<Clock> clock);
  ~NcclEngine();
  NcclEngine(const NcclEngine&) = delete;
  NcclEngine& operator=(const NcclEngine&) = delete;

  // Ends the thread and all connections; bounded. Nothing may follow but the destructor.
  void Stop();

  // For the owner's loop thread; each is thread-safe.
  const std::string& address() const { return address_; }
  PayloadMemory memory() const { return memory_; }
  void SetWakeup(std::function<void()> wakeup);
  void Submit(NcclCommand command);
  // At most `max` events, oldest first.
  void TakeEvents(size_t max, std::vector<NcclArrival>* out);
  // Staging was given back.
  void RoomFreed();
  uint32_t notifies_in_flight() const { return notifies_in_flight_; }
  NcclCounters counters() const;
  uint64_t staging_in_use_bytes() const {
    return staging_.has_value() ? staging_->bytes_in_use() : 0;
  }

 private:
  NcclEngine(const NcclTransportOptions& options, std::shared_ptr<Clock> clock);
  absl::Status Start(UcxVersion nccl);
  std::optional<OneSidedCalls> FindOneSided() const;
  absl::StatusOr<FrameListener> Listen(UcxVersion nccl);

  void Run();
  bool RunCommands();
  void Execute(NcclCommand command);
  bool Step(NextLook& look);
  void PublishEvents();
  void Sleep(const NextLook& look);
  void ShutDown();
  void WakeThread();
  void WakeOwner();
  std::string WhereIs(const NcclAddress& address) const;

  const NcclTransportOptions options_;
  const std::shared_ptr<Clock> clock_;
  std::string address_;
  uint64_t host_id_ = 0;
  std::vector<IpInterface> interfaces_;
  PayloadMemory memory_ = PayloadMemory::kGpu;
  int command_fd_ = -1;

  // Between the threads.
  mutable std::mutex mutex_;
  std::vector<NcclCommand> commands_;                    // guarded by mutex_
  std::deque<NcclArrival> events_;                       // guarded by mutex_
  bool stopping_ = false;                                // guarded by mutex_
  std::shared_ptr<const std::function<void()>> wakeup_;  // guarded by mutex_
  std::atomic<size_t> messages_waiting_{0};              // of events_: received and notified
  std::atomic<bool> starved_{false};
  std::atomic<uint32_t> notifies_in_flight_{0};
  HandoffCounters counters_;

  // The thread's own (the owner's before it starts and after it has ended).
  std::optional<HandoffContext> context_;
  std::optional<PayloadRing> staging_;  // none: it only sends
  std::optional<HandoffInbound> inbound_;
  std::optional<HandoffOutbound> outbound_;
  std::vector<NcclArrival> fresh_;  // not yet in events_
  bool told_starved_ = false;

  std::optional<Thread> thread_;
};

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_NCCL_NCCL_ENGINE_H_
