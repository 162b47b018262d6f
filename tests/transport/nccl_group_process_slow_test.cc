// Groups of processes whose data travels over the emulated NCCL: a rank that dies or stops in the
// middle of it is named as over UCX.

#include "tests/transport/group_process_conformance.h"

namespace baton::transport {
namespace {

INSTANTIATE_TEST_SUITE_P(Nccl, GroupProcessTest,
                         testing::Values(GroupProcessParam{"emulated", "nccl_collectives_child",
                                                           "sysv,tcp"}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace baton::transport
