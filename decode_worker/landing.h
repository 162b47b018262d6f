#ifndef BATON_DECODE_WORKER_LANDING_H_
#define BATON_DECODE_WORKER_LANDING_H_

// The open landings of one decode rank: checks every hand-off message (never trusting its header),
// writes it into its pages and knows when a landing is complete. What a message says counts only
// when its epoch names an open landing and its seal and checksum are right. Owned and called by the
// decode loop's thread.

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "base/clock.h"
#include "model/runner.h"
#include "scheduler/decode_planner.h"
#include "transport/kv_transport.h"

namespace baton::decode_worker {

// Counters since the last report.
struct LandingReport {
  uint32_t messages = 0;           // accepted
  uint64_t bytes = 0;              // accepted
  std::vector<Duration> handoffs;  // of landings that completed: first message -> last
  // Refused, by cause:
  uint32_t unknown_epoch = 0;  // late or foreign
  uint32_t bad_header = 0;     // names pages, layers or sizes that the landing does not have
  uint32_t bad_checksum = 0;   // payload or header damaged
  uint32_t duplicate = 0;      // pages that are there already
};

class LandingTable {
 public:
  explicit LandingTable(model::Runner& runner) : runner_(runner) {}

  void Open(const scheduler::OpenLanding& open);
  void Close(Epoch epoch);  // aborts when it is not open

  // Appends LandingCompleted or LandingCorrupted to `events` when the message decides its landing.
  void Receive(Tick now, const transport::KvMessageHeader& header,
               std::span<const std::byte> payload, std::vector<scheduler::DecodeEvent>* events);

  LandingReport TakeReport();
  size_t open_landings() const { return landings_.size(); }

 private:
  struct Landing {
    RequestKey key;
    std::vector<PageId> pages;
    int32_t token_count = 0;
    std::vector<bool> received;  // [layer * pages.size() + page]
    size_t missing = 0;          // entries of `received` that are false
    uint32_t messages = 0;
    Tick first_message_at;
    bool decided = false;  // complete or corrupt: said so once
  };

  bool HeaderFits(const Landing& landing, const transport::KvMessageHeader& header,
                  size_t payload_bytes) const;

  model::Runner& runner_;
  std::map<Epoch, Landing> landings_;
  LandingReport report_;
};

}  // namespace baton::decode_worker

#endif  // BATON_DECODE_WORKER_LANDING_H_
