// Groups of processes over UCX.

#include "tests/transport/group_process_conformance.h"

namespace baton::transport {
namespace {

INSTANTIATE_TEST_SUITE_P(Ucx, GroupProcessTest,
                         testing::Values(GroupProcessParam{"sysv_tcp", "collectives_child",
                                                           "sysv,tcp"},
                                         GroupProcessParam{"tcp", "collectives_child", "tcp"}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace baton::transport
