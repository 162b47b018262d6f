// Collectives over NCCL, emulated, each rank with a GPU of its own: the same tests as over UCX and
// between threads.

#include <gtest/gtest.h>

#include "tests/simt/options.h"
#include "tests/transport/collectives_conformance.h"
#include "tests/transport/nccl_fabric.h"

namespace baton::transport {
namespace {

constexpr int kGpus = 8;

// Whatever a test does, the emulation finds no fault in it.
class NoFaults : public testing::Environment {
 public:
  void SetUp() override { simt::SetOptions({.seed = 5, .devices = kGpus}); }
  void TearDown() override {
    const std::optional<simt::Fault> fault = simt::TakeFault();
    EXPECT_FALSE(fault.has_value()) << fault->Text();
  }
};
const testing::Environment* const kNoFaults =
    testing::AddGlobalTestEnvironment(new NoFaults);  // GoogleTest's

INSTANTIATE_TEST_SUITE_P(Nccl, CollectivesConformance,
                         testing::Values(GroupParam{
                             "emulated", [] { return std::make_unique<NcclGroupFabric>(kGpus); }}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace baton::transport
