#ifndef BATON_TESTS_TRANSPORT_NCCL_KV_FABRIC_H_
#define BATON_TESTS_TRANSPORT_NCCL_KV_FABRIC_H_

// Endpoints of the NCCL hand-off over the emulation, each on a GPU of its own as long as there are
// some.

#include <memory>

#include "tests/transport/conformance.h"
#include "tests/transport/staged_transport.h"
#include "transport/nccl/nccl_transport.h"

namespace baton::transport {

// A release whose one-sided calls are used.
inline constexpr int kOneSidedNccl = 23007;

inline NcclTransportOptions TestNcclOptions() {
  NcclTransportOptions options;
  options.listen_ip = "127.0.0.1";
  options.max_message_bytes = kTestMaxMessageBytes;
  options.staging_bytes = kTestStagingBytes;
  options.max_posts_in_flight = kTestMaxPosts;
  options.coalesce_delay = Duration::Millis(2);
  return options;
}

class NcclTestFabric : public TestFabric {
 public:
  NcclTestFabric(int gpus, PayloadMemory memory, bool one_sided = false)
      : gpus_(gpus), memory_(memory), one_sided_(one_sided) {}
  std::unique_ptr<KvTransport> NewEndpoint() override {
    NcclTransportOptions options = TestNcclOptions();
    options.gpu = next_++ % gpus_;
    options.memory = memory_;
    options.one_sided = one_sided_;
    return std::make_unique<StagedTransport>(
        CreateNcclTransport(options, std::make_shared<MonotonicClock>()).value());
  }

 private:
  const int gpus_;
  const PayloadMemory memory_;
  const bool one_sided_;
  int next_ = 0;
};

}  // namespace baton::transport

#endif  // BATON_TESTS_TRANSPORT_NCCL_KV_FABRIC_H_
