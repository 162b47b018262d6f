#ifndef BATON_TESTS_SIM_SIM_TRANSPORT_H_
#define BATON_TESTS_SIM_SIM_TRANSPORT_H_

// A KvTransport over simulated time: messages take random time and so overtake each other, and may
// be lost, damaged (payload or header), doubled or held back for long. An endpoint that is
// destroyed is a lost peer to the others a little later. One thread.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/random.h"
#include "tests/sim/event_queue.h"
#include "transport/kv_transport.h"

namespace baton::sim {

struct TransportFaults {
  double drop = 0;
  double corrupt_payload = 0;
  double corrupt_header = 0;
  double duplicate = 0;
  double hold_back = 0;  // by up to max_hold_back
  double cut = 0;        // the transfer breaks
  Duration max_hold_back = Duration::Millis(3'000);
};

struct TransportCounts {
  uint64_t posted = 0;
  uint64_t dropped = 0;
  uint64_t corrupted = 0;
  uint64_t duplicated = 0;
  uint64_t held_back = 0;
  uint64_t cut = 0;
};

class SimTransport;

// The wires between the endpoints of one simulation; outlives them.
class SimFabric {
 public:
  SimFabric(EventQueue& queue, uint64_t seed, const TransportFaults& faults)
      : queue_(queue), rng_(seed), faults_(faults) {}

  // `on_ready` is called when the endpoint's Poll may have something to say.
  std::unique_ptr<SimTransport> NewEndpoint(const std::string& name,
                                            std::function<void()> on_ready);
  void StopFaults() { faults_ = TransportFaults(); }
  const TransportCounts& counts() const { return counts_; }

 private:
  friend class SimTransport;

  void Carry(const std::string& to, const transport::KvMessageHeader& header,
             std::vector<std::byte> payload);

  EventQueue& queue_;
  Rng rng_;
  TransportFaults faults_;
  TransportCounts counts_;
  std::map<std::string, SimTransport*> endpoints_;  // by address
  uint64_t next_endpoint_ = 1;
};

class SimTransport final : public transport::KvTransport {
 public:
  SimTransport(SimFabric& fabric, std::string address, std::function<void()> on_ready);
  ~SimTransport() override;

  transport::Capabilities capabilities() const override;
  std::string address() const override { return address_; }
  absl::StatusOr<transport::RegionId> Register(std::span<std::byte> memory) override;
  void Unregister(transport::RegionId region) override;
  absl::StatusOr<transport::TransferId> Prepare(const std::string& peer_address) override;
  absl::Status Post(transport::TransferId transfer, uint64_t post_id,
                    const transport::KvMessageHeader& header,
                    std::span<const std::byte> payload) override;
  void Poll(std::vector<transport::KvEvent>* events, int max_events) override;
  void Release(transport::TransferId transfer) override;
  absl::Status Notify(transport::TransferId transfer, std::span<const std::byte> bytes) override;
  void SetWakeup(std::function<void()> wakeup) override { wakeup_ = std::move(wakeup); }

 private:
  friend class SimFabric;
  struct Incoming {
    transport::KvEvent event;
    std::vector<std::byte> payload;
  };
  struct Transfer {
    std::string peer;
    std::set<uint64_t> posts;  // not yet sent
    bool lost = false;
    bool released = false;
  };

  void Ready(Incoming incoming);
  void Lose(transport::TransferId id, const char* why);
  // Runs `what` after `delay` unless this endpoint is gone by then.
  void Later(Duration delay, std::function<void()> what);

  SimFabric& fabric_;
  const std::string address_;
  std::function<void()> on_ready_;
  std::function<void()> wakeup_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  std::map<transport::TransferId, Transfer> transfers_;
  uint64_t next_transfer_ = 1;
  uint32_t in_flight_ = 0;
  std::vector<Incoming> ready_;
  std::vector<Incoming> polled_;  // backs the payloads of the last Poll
};

}  // namespace baton::sim

#endif  // BATON_TESTS_SIM_SIM_TRANSPORT_H_
