// The conformance tests between endpoints of this process: one instance per transport.

#include "tests/transport/fabrics.h"

namespace baton::transport {
namespace {

INSTANTIATE_TEST_SUITE_P(
    Transports, KvTransportConformance,
    testing::Values(FabricParam<InprocTestFabric>("inproc"),
                    FabricParam<HarmlessFaultyFabric<InprocTestFabric>>("faulty_inproc"),
                    FabricParam<UcxTestFabric>("ucx", UcxOptions().tls)),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace baton::transport
