#ifndef BATON_TESTS_TRANSPORT_STAGED_TRANSPORT_H_
#define BATON_TESTS_TRANSPORT_STAGED_TRANSPORT_H_

// A transport of GPU memory for tests that know the host's memory alone: what they register has a
// twin that the transport can send from, and what arrives is copied to the host.

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "base/check.h"
#include "transport/kv_transport.h"

namespace baton::transport {

class StagedTransport : public KvTransport {
 public:
  explicit StagedTransport(std::unique_ptr<KvTransport> inner) : inner_(std::move(inner)) {}
  // The twins go behind the endpoint.
  ~StagedTransport() override { inner_.reset(); }
  KvTransport& inner() { return *inner_; }

  Capabilities capabilities() const override { return inner_->capabilities(); }
  std::string address() const override { return inner_->address(); }
  absl::StatusOr<RegionId> Register(std::span<std::byte> memory) override {
    if (memory.empty()) return inner_->Register(memory);
    Twin twin{memory, inner_->Allocate(memory.size()).value()};
    absl::StatusOr<RegionId> region = inner_->Register({twin.data.get(), memory.size()});
    if (region.ok()) twins_.emplace(*region, std::move(twin));
    return region;
  }
  void Unregister(RegionId region) override {
    inner_->Unregister(region);
    twins_.erase(region);
  }
  absl::StatusOr<TransferId> Prepare(const std::string& peer) override {
    return inner_->Prepare(peer);
  }
  absl::Status Post(TransferId transfer, uint64_t post_id, const KvMessageHeader& header,
                    std::span<const std::byte> payload) override {
    return inner_->Post(transfer, post_id, header, Upload(payload));
  }
  absl::Status Notify(TransferId transfer, std::span<const std::byte> bytes) override {
    return inner_->Notify(transfer, bytes);
  }
  void Flush(TransferId transfer) override { inner_->Flush(transfer); }
  void Release(TransferId transfer) override { inner_->Release(transfer); }
  void SetWakeup(std::function<void()> wakeup) override { inner_->SetWakeup(std::move(wakeup)); }
  void Poll(std::vector<KvEvent>* events, int max_events) override {
    downloads_.clear();
    const size_t before = events->size();
    inner_->Poll(events, max_events);
    for (size_t i = before; i < events->size(); ++i) {
      KvEvent& event = (*events)[i];
      if (event.kind != KvEventKind::kReceived || event.payload.empty()) continue;
      downloads_.emplace_back(event.payload.size());
      BATON_CHECK(inner_->CopyPayload(downloads_.back(), event.payload).ok());
      event.payload = downloads_.back();
    }
  }

 private:
  struct Twin {
    std::span<std::byte> host;
    std::shared_ptr<std::byte> data;
  };

  // The same bytes where the transport can read them; as they are, where nobody registered them.
  std::span<const std::byte> Upload(std::span<const std::byte> payload) {
    for (const auto& [region, twin] : twins_) {
      const std::byte* const begin = twin.host.data();
      if (payload.data() < begin || payload.data() > begin + twin.host.size()) continue;
      const size_t at = static_cast<size_t>(payload.data() - begin);
      if (at + payload.size() <= twin.host.size()) {
        const std::span<std::byte> copy(twin.data.get() + at, payload.size());
        BATON_CHECK(inner_->CopyPayload(copy, payload).ok());
        return copy;
      }
    }
    return payload;
  }

  std::unique_ptr<KvTransport> inner_;
  std::map<RegionId, Twin> twins_;
  std::vector<std::vector<std::byte>> downloads_;  // of the last Poll
};

}  // namespace baton::transport

#endif  // BATON_TESTS_TRANSPORT_STAGED_TRANSPORT_H_
