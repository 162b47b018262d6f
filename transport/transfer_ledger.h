#ifndef BATON_TRANSPORT_TRANSFER_LEDGER_H_
#define BATON_TRANSPORT_TRANSFER_LEDGER_H_

// The transfers of an endpoint and their posts in flight, as its loop knows them from its calls and
// from the events that it has polled. One thread.

#include <cstdint>
#include <map>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "transport/kv_transport.h"

namespace baton::transport {

class TransferLedger {
 public:
  TransferLedger(uint32_t max_transfers, uint32_t max_posts)
      : max_transfers_(max_transfers), max_posts_(max_posts) {}

  // A new transfer. RESOURCE_EXHAUSTED when too many are open.
  absl::StatusOr<TransferId> Open();
  // FAILED_PRECONDITION when it was lost or released.
  absl::Status CheckOpen(TransferId id) const;
  // Counts a post. Errors as CheckOpen, RESOURCE_EXHAUSTED when too many are in flight.
  absl::Status Post(TransferId id);
  // Counts nothing. Errors as Post, where `in_flight` notifies are under way.
  absl::Status CheckNotify(TransferId id, uint32_t in_flight) const;
  // False when it was released before, or is not there.
  bool Release(TransferId id);
  // An event that is given to the caller of Poll.
  void Account(const KvEvent& event);

 private:
  struct Transfer {
    uint32_t posts = 0;  // in flight
    bool released = false;
    bool lost = false;
  };
  absl::Status TooMany(const char* what) const;

  const uint32_t max_transfers_;
  const uint32_t max_posts_;
  uint64_t next_transfer_ = 1;
  std::map<TransferId, Transfer> transfers_;
  uint32_t posts_in_flight_ = 0;  // posted; kSent or kPeerLost not yet polled
};

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_TRANSFER_LEDGER_H_
