// Several ranks that die around the same time, as threads of one process.

#include "tests/decode_worker/expert_deaths.h"

namespace baton::decode_worker {
namespace {

const transport::GroupParam kInproc{
    "inproc", [] { return std::make_unique<transport::InprocGroupFabric>(); }};
INSTANTIATE_TEST_SUITE_P(Inproc, ExpertDeathsTest, testing::Values(kInproc), FabricName);

}  // namespace
}  // namespace baton::decode_worker
