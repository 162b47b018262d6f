// Collectives over UCX, between threads: everything that does not need a process to die.

#include <gtest/gtest.h>

#include "tests/transport/collectives_conformance.h"

namespace baton::transport {
namespace {

GroupParam Ucx(const std::string& name, const std::string& tls) {
  return {name, [tls] { return std::make_unique<UcxGroupFabric>(tls); }};
}

INSTANTIATE_TEST_SUITE_P(Ucx, CollectivesConformance,
                         testing::Values(Ucx("sysv_tcp", "sysv,tcp"), Ucx("tcp", "tcp")),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace baton::transport
