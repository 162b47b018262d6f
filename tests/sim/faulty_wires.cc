#include "tests/sim/faulty_wires.h"

#include <string>
#include <utility>

#include "base/check.h"

namespace baton::sim {

using transport::FaultCounts;
using transport::FaultyTransport;
using transport::KvEvent;
using transport::KvMessageHeader;
using transport::KvTransport;
using transport::RegionId;
using transport::TransferId;

// Passes everything on, and tells the simulation when the loop has to look.
class FaultyWires::Endpoint final : public KvTransport {
 public:
  // `faulty` is `inner`, or null.
  Endpoint(std::unique_ptr<KvTransport> inner, FaultyTransport* faulty, HostContext host,
           FaultCounts* counts)
      : inner_(std::move(inner)), faulty_(faulty), host_(std::move(host)), counts_(counts) {}
  ~Endpoint() override {
    if (faulty_ != nullptr) AddCounts(faulty_->counts(), counts_);
  }

  transport::Capabilities capabilities() const override { return inner_->capabilities(); }
  std::string address() const override { return inner_->address(); }
  absl::StatusOr<RegionId> Register(std::span<std::byte> memory) override {
    return inner_->Register(memory);
  }
  void Unregister(RegionId region) override { inner_->Unregister(region); }
  absl::StatusOr<TransferId> Prepare(const std::string& peer_address) override {
    return inner_->Prepare(peer_address);
  }
  absl::Status Post(TransferId transfer, uint64_t post_id, const KvMessageHeader& header,
                    std::span<const std::byte> payload) override {
    const absl::Status status = inner_->Post(transfer, post_id, header, payload);
    TickWhenDue();
    return status;
  }
  void Poll(std::vector<KvEvent>* events, int max_events) override {
    inner_->Poll(events, max_events);
    TickWhenDue();
  }
  void Release(TransferId transfer) override { inner_->Release(transfer); }
  absl::Status Notify(TransferId transfer, std::span<const std::byte> bytes) override {
    return inner_->Notify(transfer, bytes);
  }
  void SetWakeup(std::function<void()> wakeup) override {
    inner_->SetWakeup([wakeup = std::move(wakeup), host = host_] {
      wakeup();
      host.tick_at(host.clock->Now());
    });
  }

 private:
  void TickWhenDue() {
    if (faulty_ != nullptr && !faulty_->next_due().infinite()) host_.tick_at(faulty_->next_due());
  }

  const std::unique_ptr<KvTransport> inner_;
  FaultyTransport* const faulty_;
  const HostContext host_;
  FaultCounts* const counts_;
};

std::unique_ptr<KvTransport> FaultyWires::MakeTransport(const HostContext& host) {
  std::unique_ptr<KvTransport> inner = fabric_.NewEndpoint(host.name, inproc_);
  FaultyTransport* harmful = nullptr;
  if (host.name.starts_with("prefill")) {
    transport::FaultyOptions options = faults_;
    options.seed = seed_ * 1009 + endpoints_++;
    options.clock = std::shared_ptr<Clock>(std::shared_ptr<void>(), host.clock);  // not owned
    auto faulty = std::make_unique<FaultyTransport>(std::move(inner), options);
    harmful = faulty.get();
    inner = std::move(faulty);
  }
  return std::make_unique<Endpoint>(std::move(inner), harmful, host, &counts_);
}

void AddCounts(const FaultCounts& more, FaultCounts* sum) {
  sum->messages += more.messages;
  sum->dropped += more.dropped;
  sum->delayed += more.delayed;
  sum->reordered += more.reordered;
  sum->duplicated += more.duplicated;
  sum->corrupted_payload += more.corrupted_payload;
  sum->corrupted_header += more.corrupted_header;
  sum->truncated += more.truncated;
  sum->cut += more.cut;
  sum->spared += more.spared;
}

}  // namespace baton::sim
