// The conformance tests on UCX's transports one by one, and on a decorated one.

#include "tests/transport/fabrics.h"

namespace baton::transport {
namespace {

INSTANTIATE_TEST_SUITE_P(Transports, KvTransportConformance,
                         testing::Values(FabricParam<UcxTestFabric>("ucx_all", "all"),
                                         FabricParam<UcxTestFabric>("ucx_tcp", "tcp"),
                                         FabricParam<HarmlessFaultyFabric<UcxTestFabric>>(
                                             "faulty_ucx", UcxOptions().tls)),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace baton::transport
