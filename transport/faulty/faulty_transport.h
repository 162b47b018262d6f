#ifndef BATON_TRANSPORT_FAULTY_FAULTY_TRANSPORT_H_
#define BATON_TRANSPORT_FAULTY_FAULTY_TRANSPORT_H_

// A KvTransport that passes everything on to another and, by chance, harms what is sent through it:
// messages are dropped, delayed, overtaken, doubled, damaged or shortened, and transfers are cut.
// The chances are drawn from a seed, in the order of the Posts: the same calls meet the same
// faults. For tests and fault drills; what an endpoint receives is harmed at the sender's
// decorator.
//
// It keeps the interface's contract towards the caller. A message that it holds back is its own
// copy: kSent is told at once and the payload may be reused. kReleased waits for all copies. A cut
// tells kPeerLost once nothing of the transfer is in flight. (A doubled message breaks "at most
// once per Post" by design.) Same threads as the decorated transport.

#include <cstdint>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/random.h"
#include "transport/kv_transport.h"
#include "transport/region_table.h"

namespace baton::transport {

// Chances in [0, 1], drawn independently for each message.
struct FaultRates {
  double drop = 0;             // never sent; kSent all the same
  double delay = 0;            // sent later, by up to the most allowed below
  double reorder = 0;          // sent after a later message of its transfer (or after the delay)
  double duplicate = 0;        // sent, and sent again after a delay
  double corrupt_payload = 0;  // one byte of the payload changes
  double corrupt_header = 0;   // one bit of the header changes, not in payload_bytes
  double truncate = 0;         // the payload ends early, payload_bytes agrees
  double cut = 0;              // the transfer is lost with this message
};

struct FaultyOptions {
  uint64_t seed = 1;
  FaultRates rates;
  // Delays are counted in Poll calls: 1 to max_delay_polls of them; while something is held back,
  // each Poll calls the wakeup for the next. With a clock they are durations up to max_delay
  // instead, and the caller sees to it that Poll is called by next_due().
  int max_delay_polls = 16;
  std::shared_ptr<Clock> clock;
  Duration max_delay = Duration::Millis(20);
  uint64_t max_copied_bytes = uint64_t{64} << 20;  // beyond it messages pass unharmed
};

// How often each fault was done. Posts and notifies count alike.
struct FaultCounts {
  uint64_t messages = 0;  // accepted from the caller
  uint64_t dropped = 0;
  uint64_t delayed = 0;
  uint64_t reordered = 0;
  uint64_t duplicated = 0;
  uint64_t corrupted_payload = 0;
  uint64_t corrupted_header = 0;
  uint64_t truncated = 0;
  uint64_t cut = 0;
  uint64_t spared = 0;  // for want of max_copied_bytes
  friend bool operator==(const FaultCounts&, const FaultCounts&) = default;
};

class FaultyTransport final : public KvTransport {
 public:
  FaultyTransport(std::unique_ptr<KvTransport> inner, const FaultyOptions& options);
  ~FaultyTransport() override;

  const FaultCounts& counts() const { return counts_; }
  void SetRates(const FaultRates& rates) { rates_ = rates; }
  // Messages that are held back.
  size_t held() const { return held_.size(); }
  // With a clock: when the next held message is due; infinite when none is.
  Tick next_due() const;

  Capabilities capabilities() const override { return inner_->capabilities(); }
  std::string address() const override { return inner_->address(); }
  absl::StatusOr<std::shared_ptr<std::byte>> Allocate(size_t bytes) override {
    return inner_->Allocate(bytes);
  }
  absl::Status CopyPayload(std::span<std::byte> to, std::span<const std::byte> from) override {
    return inner_->CopyPayload(to, from);
  }
  void Flush(TransferId transfer) override { inner_->Flush(transfer); }
  absl::StatusOr<RegionId> Register(std::span<std::byte> memory) override;
  void Unregister(RegionId region) override;
  absl::StatusOr<TransferId> Prepare(const std::string& peer_address) override;
  absl::Status Post(TransferId transfer, uint64_t post_id, const KvMessageHeader& header,
                    std::span<const std::byte> payload) override;
  void Poll(std::vector<KvEvent>* events, int max_events) override;
  void Release(TransferId transfer) override;
  absl::Status Notify(TransferId transfer, std::span<const std::byte> bytes) override;
  void SetWakeup(std::function<void()> wakeup) override;

 private:
  // What chance has in store for one message.
  struct Fate {
    bool drop, delay, reorder, duplicate, corrupt_payload, corrupt_header, truncate, cut;
    uint64_t dice;  // for where and how much
    bool needs_copy() const {
      return delay || reorder || duplicate || corrupt_payload || corrupt_header || truncate;
    }
  };
  struct Message {
    uint64_t sequence = 0;  // of the caller's messages
    TransferId transfer;
    bool is_notify = false;
    KvMessageHeader header;
    std::vector<std::byte> bytes;  // a copy
    // The same where the inner transport can read it, and its region, while it may.
    std::shared_ptr<std::byte> sent_from;
    RegionId region;
    std::span<std::byte> payload() const {
      return {sent_from.get(), sent_from != nullptr ? bytes.size() : 0};
    }
  };
  struct Held {
    Message message;
    bool until_overtaken = false;
    uint64_t due_poll = 0;
    Tick due;
  };
  struct Transfer {
    uint32_t posts = 0;  // the caller's, neither kSent nor lost
    uint32_t held = 0;
    bool released = false;  // by the caller
    bool cut = false;
    bool lost_told = false;
  };
  struct InnerPost {
    TransferId transfer;
    bool is_copy = false;
    uint64_t post_id = 0;  // the caller's
    std::list<Message>::iterator copy;
  };

  Fate Draw();
  absl::Status CheckOpen(TransferId transfer) const;
  // The part that Post and Notify share. True when the message was dealt with.
  bool Harm(TransferId transfer, bool is_notify, const KvMessageHeader& header,
            std::span<const std::byte> bytes);
  void Damage(const Fate& fate, Message* message);
  void Hold(Message message, const Fate& fate, bool until_overtaken);
  void Cut(TransferId transfer);
  // False when the inner transport has no room now.
  bool Forward(Message* message);
  absl::Status RegisterCopy(Message* copy);
  void UnregisterCopy(Message* copy);
  void ForwardDue();
  void Overtake(TransferId transfer, uint64_t sequence);
  void DropHeld(TransferId transfer);
  void ReleaseInner(TransferId transfer);
  void Finish(std::list<Message>::iterator copy);
  void Translate(const KvEvent& event, std::vector<KvEvent>* events);
  void EndReleased(TransferId transfer, std::vector<KvEvent>* events);
  void TellLost(TransferId transfer, const absl::Status& status, std::vector<KvEvent>* events);
  void Wake() const;

  std::unique_ptr<KvTransport> inner_;
  const FaultyOptions options_;
  FaultRates rates_;
  Rng rng_;
  FaultCounts counts_;
  RegionTable regions_;                         // the caller's
  std::map<RegionId, RegionId> inner_regions_;  // by the caller's
  std::map<TransferId, Transfer> transfers_;
  std::map<uint64_t, InnerPost> inner_posts_;  // by the id given to the inner transport
  uint64_t next_inner_post_ = 1;
  std::list<Message> sending_;  // copies that the inner transport reads
  std::list<Held> held_;        // in the order of their Posts
  uint64_t copied_bytes_ = 0;
  uint64_t polls_ = 0;
  uint32_t posts_in_flight_ = 0;  // the caller's
  std::deque<KvEvent> ready_;     // without payloads
  std::function<void()> wakeup_;  // the inner transport has it too
};

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_FAULTY_FAULTY_TRANSPORT_H_
