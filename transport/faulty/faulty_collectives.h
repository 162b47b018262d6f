#ifndef BATON_TRANSPORT_FAULTY_FAULTY_COLLECTIVES_H_
#define BATON_TRANSPORT_FAULTY_FAULTY_COLLECTIVES_H_

// Collectives that pass everything on to others and, by chance, harm this rank's calls: a call
// comes late, fails, or the rank falls silent as if it was stopped. The chances are drawn from a
// seed, in the order of the calls: the same calls meet the same faults. For tests and fault drills;
// decorate one rank or several.

#include <cstdint>
#include <functional>
#include <memory>

#include "base/random.h"
#include "transport/collectives.h"

namespace baton::transport {

// Chances in [0, 1], drawn independently for each call.
struct CollectiveFaultRates {
  double delay = 0;  // the call begins later, by up to max_delay
  double fail = 0;   // Abort with UNAVAILABLE "injected": this rank and all others fail
  double drop = 0;   // this rank takes part in nothing any more: its calls fail at once, with
                     // UNAVAILABLE "injected", and the others miss it until their deadline
};

struct FaultyCollectivesOptions {
  uint64_t seed = 1;
  CollectiveFaultRates rates;
  Duration max_delay = Duration::Millis(20);
  // Calls before this one (counted from 0) are left alone.
  uint64_t first_call = 0;
  // Makes a delay come true. Empty: the thread sleeps. A test may move its clock instead.
  std::function<void(Duration)> wait;
};

struct CollectiveFaultCounts {
  uint64_t calls = 0;
  uint64_t delayed = 0;
  uint64_t failed = 0;   // 0 or 1
  uint64_t dropped = 0;  // calls
  friend bool operator==(const CollectiveFaultCounts&, const CollectiveFaultCounts&) = default;
};

class FaultyCollectives final : public Collectives {
 public:
  FaultyCollectives(std::unique_ptr<Collectives> inner, FaultyCollectivesOptions options);

  const CollectiveFaultCounts& counts() const { return counts_; }
  // From now on as after a drop.
  void Drop() { is_dropped_ = true; }

  // Unharmed: faults meet the calls on the host's memory.
  DeviceCalls* ForDevice() override { return inner_->ForDevice(); }
  int world_size() const override { return inner_->world_size(); }
  int rank() const override { return inner_->rank(); }
  absl::Status AllReduceSum(std::span<std::byte> data, ReduceType type, Duration timeout) override;
  absl::Status AllGather(std::span<const std::byte> mine, std::span<std::byte> all,
                         Duration timeout) override;
  absl::Status Broadcast(std::span<std::byte> data, int root, Duration timeout) override;
  absl::Status AllToAllV(std::span<const std::byte> send, std::span<const size_t> send_bytes,
                         std::span<std::byte> recv, std::span<const size_t> recv_bytes,
                         Duration timeout) override;
  absl::Status Barrier(Duration timeout) override;
  bool is_present(int rank) const override { return inner_->is_present(rank); }
  uint64_t generation() const override { return inner_->generation(); }
  absl::Status health() const override { return inner_->health(); }
  std::vector<int> lost_ranks() const override { return inner_->lost_ranks(); }
  std::vector<int> gone_ranks() const override { return inner_->gone_ranks(); }
  void MoveOn() override { inner_->MoveOn(); }
  void Abort(const absl::Status& why) override { inner_->Abort(why); }
  void SetWakeup(std::function<void()> wakeup) override { inner_->SetWakeup(std::move(wakeup)); }
  void Ring() override { inner_->Ring(); }
  bool PeerWaits() const override { return inner_->PeerWaits(); }

 private:
  // OK when the call may go on to the inner group.
  absl::Status MeetFate();

  const std::unique_ptr<Collectives> inner_;
  const FaultyCollectivesOptions options_;
  Rng rng_;
  CollectiveFaultCounts counts_;
  bool is_dropped_ = false;
};

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_FAULTY_FAULTY_COLLECTIVES_H_
