#ifndef BATON_TESTS_TRANSPORT_NCCL_HANDOFF_FIXTURE_H_
#define BATON_TESTS_TRANSPORT_NCCL_HANDOFF_FIXTURE_H_

// Endpoints of the NCCL hand-off of one process, and what one does with them.

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/simt/options.h"
#include "tests/transport/nccl_kv_fabric.h"
#include "tests/transport/stranger.h"
#include "tests/transport/test_peer.h"
#include "transport/group/frame_socket.h"
#include "transport/nccl/handoff_message.h"
#include "transport/nccl/nccl_address.h"

namespace baton::transport {

inline constexpr int kHandoffGpus = 6;

class NcclHandoff : public testing::Test {
 protected:
  static void SetUpTestSuite() { simt::SetOptions({.seed = 3, .devices = kHandoffGpus}); }
  void TearDown() override {
    const std::optional<simt::Fault> fault = simt::TakeFault();
    EXPECT_FALSE(fault.has_value()) << fault->Text();
  }

  struct Endpoint {
    Endpoint(const NcclTransportOptions& options, Bell* bell)
        : peer(std::make_unique<StagedTransport>(
                   CreateNcclTransport(options, std::make_shared<MonotonicClock>()).value()),
               bell),
          memory(&peer.transport(), kTestMaxMessageBytes, 1) {}
    NcclCounters counters() {
      KvTransport& inner = static_cast<StagedTransport&>(peer.transport()).inner();
      return static_cast<NcclTransport&>(inner).counters();
    }
    absl::Status Post(TransferId transfer, uint64_t id, size_t at, size_t bytes) {
      const auto payload = memory.Part(at, bytes);
      return peer.transport().Post(transfer, id, TestHeader(id, payload), payload);
    }
    TransferId Prepare(Endpoint& to) {
      return peer.transport().Prepare(to.peer.transport().address()).value();
    }
    TestPeer peer;
    TestMemory memory;
  };

  // On the next GPU.
  std::unique_ptr<Endpoint> Make(NcclTransportOptions options = TestNcclOptions()) {
    options.gpu = next_gpu_++ % kHandoffGpus;
    return std::make_unique<Endpoint>(options, &bell_);
  }
  static bool Poll(const std::vector<Endpoint*>& endpoints, const std::function<bool()>& done) {
    std::vector<TestPeer*> peers;
    for (Endpoint* endpoint : endpoints) peers.push_back(&endpoint->peer);
    return PollUntil(peers, done);
  }

  Bell bell_;
  int next_gpu_ = 0;
};

// Of an endpoint, as it says itself.
inline NcclAddress AddressOf(KvTransport& transport) {
  const std::string address = transport.address();
  // Behind two names and a format.
  const size_t at = address.find('\n') + 6;
  const UcxVersion release{static_cast<uint8_t>(address[at]),
                           static_cast<uint8_t>(address[at + 1])};
  return DecodeNcclAddress(release, address).value();
}

inline void Say(Stranger& stranger, const HandoffMessage& message) {
  const std::string payload = EncodeHandoff(message);
  stranger.Say(FrameBytes(kFrameMagic, static_cast<uint32_t>(payload.size()),
                          static_cast<uint32_t>(FrameKind::kHandoff), payload));
}

}  // namespace baton::transport

#endif  // BATON_TESTS_TRANSPORT_NCCL_HANDOFF_FIXTURE_H_
