// The NCCL hand-off between processes, emulated: each process has a GPU of its own.

#include "tests/simt/options.h"
#include "tests/transport/nccl_kv_fabric.h"
#include "tests/transport/process_conformance.h"

namespace baton::transport {
namespace {

// Whatever becomes of a peer, the emulation finds no fault in this process.
class NoFaults : public testing::Environment {
 public:
  void SetUp() override { simt::SetOptions({.nccl_version = kOneSidedNccl}); }
  void TearDown() override {
    const std::optional<simt::Fault> fault = simt::TakeFault();
    EXPECT_FALSE(fault.has_value()) << fault->Text();
  }
};
const testing::Environment* const kNoFaults =
    testing::AddGlobalTestEnvironment(new NoFaults);  // GoogleTest's

std::unique_ptr<KvTransport> NewEndpoint(const std::string& way) {
  NcclTransportOptions options = TestNcclOptions();
  options.memory = way == "pinned" ? PayloadMemory::kPinned : PayloadMemory::kGpu;
  options.one_sided = way == "one_sided";
  options.max_message_bytes = kProcessMaxBytes;
  options.staging_bytes = kProcessStagingBytes;
  options.max_posts_in_flight = kProcessMaxPosts;
  options.stall_timeout = kProcessStallTimeout;
  options.transfer_timeout = Duration::Millis(1000);
  return std::make_unique<StagedTransport>(
      CreateNcclTransport(options, std::make_shared<MonotonicClock>()).value());
}

ProcessParam Param(const std::string& way) {
  return {way, "nccl_transport_child", way, NewEndpoint, [](KvTransport& transport) {
            KvTransport& inner = static_cast<StagedTransport&>(transport).inner();
            return static_cast<NcclTransport&>(inner).staging_in_use_bytes();
          }};
}

INSTANTIATE_TEST_SUITE_P(Nccl, KvTransportProcesses,
                         testing::Values(Param("gpu"), Param("pinned"), Param("one_sided")),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace baton::transport
