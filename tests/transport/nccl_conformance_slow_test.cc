// The conformance tests over the emulated NCCL: payloads in the GPUs' memory, in pinned memory, put
// from one GPU to the other, and behind a decorator.

#include "tests/simt/options.h"
#include "tests/transport/fabrics.h"
#include "tests/transport/nccl_kv_fabric.h"

namespace baton::transport {
namespace {

constexpr int kGpus = 8;

// Whatever a test does, the emulation finds no fault in it.
class NoFaults : public testing::Environment {
 public:
  void SetUp() override {
    simt::SetOptions({.seed = 5, .devices = kGpus, .nccl_version = kOneSidedNccl});
  }
  void TearDown() override {
    const std::optional<simt::Fault> fault = simt::TakeFault();
    EXPECT_FALSE(fault.has_value()) << fault->Text();
  }
};
const testing::Environment* const kNoFaults =
    testing::AddGlobalTestEnvironment(new NoFaults);  // GoogleTest's

INSTANTIATE_TEST_SUITE_P(
    Transports, KvTransportConformance,
    testing::Values(FabricParam<NcclTestFabric>("nccl", kGpus, PayloadMemory::kGpu),
                    FabricParam<NcclTestFabric>("nccl_pinned", kGpus, PayloadMemory::kPinned),
                    FabricParam<NcclTestFabric>("nccl_one_sided", kGpus, PayloadMemory::kGpu, true),
                    FabricParam<HarmlessFaultyFabric<NcclTestFabric>>("faulty_nccl", kGpus,
                                                                      PayloadMemory::kGpu)),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace baton::transport
